"""Kernel predictors: what a network would output if its kernel had been this one from the start, and fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.ntk.algebra import as_matrix, solve, spectrum

JITTER = 1e-10
"""Added to the diagonal, relative to its mean; far below anything that changes a match, and never tuned for one."""

BASES = ("zero", "init")


class KernelPredictor:
    """Kernel regression, ``p(x) = b(x) + K(x, X) [K(X, X) + ridge]^-1 (y - b(X))``, or its flow to a finite time.

    The base b is zero or the network at initialisation, never the trained network: with base f_T *any* kernel matches,
    an unrelated Laplace kernel with R2 = .9999.

    Args:
        k_train: [n, n], one kernel for all outputs, or [n, n, c, c] (the full multi-output kernel); a tensor or any
            array. Solved in float64 on its own device.
        ridge: added to the diagonal, in units of the kernel.
        base: "zero" or "init"; "init" takes f_0 in ``fit`` and ``predict``.
        time: None: trained to the end. A number t: gradient flow df/dt = -K r / n until t (the sum of steps of gradient
            descent on 1/(2n) sum r^2). A sequence of steps: gradient descent with exactly these, ``prod(1 - eta K/n)``.
        momenta: for a sequence of steps, the share of the last move by which each goes on (Nesterov's momentum).

    Raises:
        ValueError: another base, a negative ridge or time, a time with a ridge, or a matrix that is no kernel.
    """

    def __init__(
        self,
        k_train: Any,
        ridge: float = 0.0,
        base: str = "zero",
        time: float | Sequence[float] | Tensor | None = None,
        momenta: Sequence[float] | Tensor | None = None,
    ) -> None:
        if base not in BASES:
            raise ValueError(
                f"base must be 'zero' or 'init', not {base!r}: with the trained network as base any kernel matches it."
            )
        if ridge < 0:
            raise ValueError(f"ridge must be at least 0, not {ridge}.")
        if time is not None and ridge:
            raise ValueError("time and ridge cannot be combined: the flow to a finite time has no ridge.")
        if time is not None and bool((torch.as_tensor(time) < 0).any()):
            raise ValueError("time must not be negative.")
        if momenta is not None and (time is None or torch.as_tensor(momenta).shape != torch.as_tensor(time).shape):
            raise ValueError("momenta must be one number for each step in time.")
        self.base = base
        self.time = time
        self.momenta = momenta
        kernel = _float64(k_train)
        if kernel.ndim not in (2, 4) or kernel.shape[0] != kernel.shape[1] or 0 in kernel.shape:
            raise ValueError(f"k_train must be [n, n] or [n, n, c, c], not {list(kernel.shape)}.")
        if not bool(torch.isfinite(kernel).all()):
            raise ValueError("k_train holds nan or inf.")
        self._outputs = kernel.shape[2] if kernel.ndim == 4 else None
        self._n = kernel.shape[0]
        self._kernel = as_matrix(kernel)
        mean_diagonal = float(self._kernel.diagonal().mean())
        self._ridge = ridge + JITTER * mean_diagonal
        self._solution: Tensor | None = None

    def fit(self, y: Any, f_0: Any = None) -> KernelPredictor:
        """Solve for targets y [n, c]; f_0 [n, c], the network at initialisation, is needed by base "init" only."""
        target = self._residual(_float64(y).to(self._kernel.device), f_0, "fit")
        if len(target) != self._n:
            raise ValueError(f"y has {len(target)} rows, the kernel {self._n}.")
        flat = target if self._outputs is None else target.reshape(-1, 1)
        if len(flat) != len(self._kernel):
            raise ValueError(f"y has {target.shape[1]} outputs, the kernel {self._outputs}.")
        self._solution = self._flow(flat) if self.time is not None else solve(self._kernel, flat, self._ridge).x
        return self

    @property
    def weights(self) -> Tensor:
        """The solution, [n, c] (or [n c, 1] for a full multi-output kernel, sample-major).

        Raises:
            ValueError: before ``fit``.
        """
        if self._solution is None:
            raise ValueError("Call fit before predict.")
        return self._solution

    def predict(self, k_test_train: Any, f_0: Any = None) -> Tensor:
        """Predictions [n_test, c] from the kernel [n_test, n] or [n_test, n, c, c]; f_0 [n_test, c] for base "init"."""
        weights = self.weights
        kernel = _float64(k_test_train).to(self._kernel.device)
        if kernel.ndim != (2 if self._outputs is None else 4) or kernel.shape[1] != self._n:
            wanted = "n_test, n" if self._outputs is None else "n_test, n, c, c"
            raise ValueError(f"k_test_train must be [{wanted}] with n = {self._n}, not {list(kernel.shape)}.")
        prediction = (as_matrix(kernel) @ weights).reshape(len(kernel), self._outputs or -1)
        return prediction if self.base == "zero" else prediction + self._initial(f_0, "predict")

    def _residual(self, y: Tensor, f_0: Any, call: str) -> Tensor:
        if y.ndim == 1:
            y = y[:, None]
        return y if self.base == "zero" else y - self._initial(f_0, call)

    def _initial(self, f_0: Any, call: str) -> Tensor:
        if f_0 is None:
            raise ValueError(f"base 'init' needs f_0 in {call}: the outputs of the network at initialisation.")
        initial = _float64(f_0).to(self._kernel.device)
        return initial[:, None] if initial.ndim == 1 else initial

    def _flow(self, target: Tensor) -> Tensor:
        """Weights w with K w = (1 - decay(K)) target, for the decay of a flow or of discrete steps."""
        found = spectrum(self._kernel)
        eigenvalues, vectors = found.eigenvalues, found.vectors
        time = torch.as_tensor(self.time, dtype=torch.float64, device=eigenvalues.device)
        rates = eigenvalues / self._n
        momenta = None if self.momenta is None else _float64(self.momenta).to(time)
        learnt = _learnt(rates, time) if momenta is None else _learnt_with_momentum(rates, time, momenta)
        # Below rounding the quotient learnt / eigenvalue is its limit, the total time / n.
        weights = torch.where(eigenvalues > 1e-15 * eigenvalues[-1], learnt / eigenvalues, time.sum() / self._n)
        return vectors @ (weights[:, None] * (vectors.T @ target))


def _learnt(rates: Tensor, time: Tensor) -> Tensor:
    """1 - exp(-rate time) for a time, 1 - prod(1 - rate step) for a sequence of steps, without cancellation."""
    if time.ndim == 0:
        return -torch.expm1(-rates * time)
    if len(time) == 0:
        return torch.zeros_like(rates)
    shrink = rates[None, :] * time[:, None]
    slow = shrink.amax(0) < 0.5
    return torch.where(slow, -torch.expm1(torch.log1p(-shrink.clamp_max(0.5)).sum(0)), 1 - (1 - shrink).prod(0))


def _learnt_with_momentum(rates: Tensor, steps: Tensor, momenta: Tensor) -> Tensor:
    """The share of its target that a mode has learnt at the last point to which momentum carried it."""
    share = reached = torch.zeros_like(rates)
    for step, momentum in zip(steps, momenta, strict=True):
        before, reached = reached, share + step * rates * (1 - share)
        share = reached + momentum * (reached - before)
    return share


def _float64(array: Any) -> Tensor:
    return torch.as_tensor(array).detach().to(torch.float64)
