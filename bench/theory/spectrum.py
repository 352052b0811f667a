"""A kernel's spectrum and a target's power in it, and the prediction from both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.theory.contract import mode_sum
from bench.theory.eigenlearning import Eigenlearning, eigenlearning


class Kernel(Protocol):
    """kernel(x1 [n1, d], x2 [n2, d]) -> [n1, n2]; kernel(x1) is x1 with itself, the diagonal exact.

    Of a network: ``limit = infinite_width(net)`` and ``lambda a, b=None: limit(a, b).ntk``.
    """

    def __call__(self, x1: Tensor, x2: Tensor | None = None, /) -> Tensor: ...


Function = Callable[[Tensor], Tensor]
"""A target: inputs [n, d] -> [n], or [n, c] for c targets."""


@dataclass(frozen=True)
class Target:
    """Squared coefficients of one target, [modes], or of several, [c, modes]."""

    power: Tensor  # [..., modes], summed within each level
    mean_square: Tensor  # [...], of the whole target, its part outside the modes included

    @property
    def missing(self) -> Tensor:
        """Mean square outside the modes, [...]."""
        return (self.mean_square - self.power.sum(-1)).clamp_min(0)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a kernel's integral operator under the distribution of the inputs."""

    eigenvalues: Tensor  # [modes]
    multiplicities: Tensor | None  # [modes]; None: 1
    trace: Tensor  # [], E K(x, x)

    @property
    def tail(self) -> Tensor:
        """Trace outside the modes, []."""
        return (self.trace - mode_sum(self.eigenvalues, self.multiplicities)).clamp_min(0)

    def predict(self, target: Target, n: Any, ridge: Any = 0.0, noise: Any = 0.0) -> Eigenlearning:
        """Eigenlearning with the missing trace in the ridge and the target's missing power in the noise."""
        return eigenlearning(
            self.eigenvalues,
            target.power,
            n,
            ridge,
            noise,
            self.multiplicities,
            tail=self.tail,
            missing=target.missing,
        )


def column_targets(values: Tensor) -> tuple[Tensor, bool]:
    """Target values [n] or [n, c] as float64 [n, c], and whether it was a single one.

    Raises:
        ValueError: another shape, or not finite.
    """
    if values.ndim not in (1, 2) or values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise ValueError(f"The target must give finite values [n] or [n, c], not {list(values.shape)} or NaN.")
    values = values.to(torch.float64)
    return (values[:, None], True) if values.ndim == 1 else (values, False)


def make_target(power: Tensor, mean_square: Tensor, single: bool) -> Target:
    """Of power [c, modes] and mean square [c]; a single target loses its axis."""
    return Target(power[0], mean_square[0]) if single else Target(power, mean_square)
