"""What every kernel predictor is given: a checked Gram matrix, and the base that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.ntk.algebra import as_matrix

BASES = ("zero", "init")


class Gram:
    """A kernel on the training points, checked, in float64 on its own device.

    Args:
        k_train: [n, n], one kernel for all outputs, or [n, n, c, c] (the full multi-output kernel); a tensor or any
            array.

    Raises:
        ValueError: another shape, nan or inf.
    """

    def __init__(self, k_train: Any) -> None:
        kernel = as_float64(k_train)
        if kernel.ndim not in (2, 4) or kernel.shape[0] != kernel.shape[1] or 0 in kernel.shape:
            raise ValueError(f"k_train must be [n, n] or [n, n, c, c], not {list(kernel.shape)}.")
        if not bool(torch.isfinite(kernel).all()):
            raise ValueError("k_train holds nan or inf.")
        self.outputs = kernel.shape[2] if kernel.ndim == 4 else None
        self.n = kernel.shape[0]
        self.matrix = as_matrix(kernel)  # [n, n], or [n c, n c], sample-major

    @property
    def mean_diagonal(self) -> float:
        return float(self.matrix.diagonal().mean())

    def targets(self, y: Any, f_0: Tensor | None = None) -> Tensor:
        """Targets [n, c] (a vector is one output), minus f_0.

        Raises:
            ValueError: they do not fit the kernel.
        """
        target = column(as_float64(y).to(self.matrix.device))
        if len(target) != self.n:
            raise ValueError(f"y has {len(target)} rows, the kernel {self.n}.")
        if self.outputs not in (None, target.shape[1]):
            raise ValueError(f"y has {target.shape[1]} outputs, the kernel {self.outputs}.")
        return target if f_0 is None else target - f_0

    def flat(self, values: Tensor) -> Tensor:
        """[n, c] as the right-hand sides that the matrix takes: [n, c], or [n c, 1] for a full multi-output kernel."""
        return values if self.outputs is None else values.reshape(-1, 1)

    def predict(self, k_test_train: Any, weights: Tensor) -> Tensor:
        """``K(x, X) weights``, [n_test, c], from the kernel [n_test, n] or [n_test, n, c, c] and flat weights."""
        kernel = as_float64(k_test_train).to(self.matrix.device)
        if kernel.ndim != (2 if self.outputs is None else 4) or kernel.shape[1] != self.n:
            wanted = "n_test, n" if self.outputs is None else "n_test, n, c, c"
            raise ValueError(f"k_test_train must be [{wanted}] with n = {self.n}, not {list(kernel.shape)}.")
        return (as_matrix(kernel) @ weights).reshape(len(kernel), self.outputs or -1)


@dataclass(frozen=True)
class Base:
    """Where a predictor starts: "zero", or "init", the network at initialisation; never the trained network.

    Raises:
        ValueError: another name, or f_0 missing where it is needed.
    """

    name: str = "zero"

    def __post_init__(self) -> None:
        if self.name not in BASES:
            raise ValueError(
                f"base must be 'zero' or 'init', not {self.name!r}: with the trained network as base any kernel "
                "matches it."
            )

    def of(self, f_0: Any, gram: Gram, call: str) -> Tensor | None:
        """f_0 as [n, c], or None for the base zero."""
        if self.name == "zero":
            return None
        if f_0 is None:
            raise ValueError(f"base 'init' needs f_0 in {call}: the outputs of the network at initialisation.")
        return column(as_float64(f_0).to(gram.matrix.device))


def as_float64(array: Any) -> Tensor:
    """Any array as a detached tensor in float64, where it is."""
    return torch.as_tensor(array, dtype=torch.float64).detach()


def column(values: Tensor) -> Tensor:
    """A vector as [n, 1]; what has two axes as it is."""
    return values[:, None] if values.ndim == 1 else values


def classes(output: Tensor) -> Tensor:
    """The class that targets or outputs [n, c] name, [n]: the sign of a single column (0 or 1), else the largest."""
    return (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)
