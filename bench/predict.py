"""Kernel predictors: what a network would output if its kernel had been this one from the start, and fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gram import Base, Gram, as_float64
from bench.ntk.algebra import solve, spectrum

JITTER = 1e-10
"""Added to the diagonal, relative to its mean; far below anything that changes a match, and never tuned for one."""


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
        if ridge < 0:
            raise ValueError(f"ridge must be at least 0, not {ridge}.")
        if time is not None and ridge:
            raise ValueError("time and ridge cannot be combined: the flow to a finite time has no ridge.")
        if time is not None and bool((torch.as_tensor(time) < 0).any()):
            raise ValueError("time must not be negative.")
        if momenta is not None and (time is None or torch.as_tensor(momenta).shape != torch.as_tensor(time).shape):
            raise ValueError("momenta must be one number for each step in time.")
        self.base = Base(base)
        self.time = time
        self.momenta = momenta
        self.gram = Gram(k_train)
        self._ridge = ridge + JITTER * self.gram.mean_diagonal
        self._solution: Tensor | None = None

    def fit(self, y: Any, f_0: Any = None) -> KernelPredictor:
        """Solve for targets y [n, c]; f_0 [n, c], the network at initialisation, is needed by base "init" only."""
        target = self.gram.flat(self.gram.targets(y, self.base.of(f_0, self.gram, "fit")))
        flows = self.time is not None
        self._solution = self._flow(target) if flows else solve(self.gram.matrix, target, self._ridge).x
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
        prediction = self.gram.predict(k_test_train, self.weights)
        initial = self.base.of(f_0, self.gram, "predict")
        return prediction if initial is None else prediction + initial

    def _flow(self, target: Tensor) -> Tensor:
        """Weights w with K w = (1 - decay(K)) target, for the decay of a flow or of discrete steps."""
        found = spectrum(self.gram.matrix)
        eigenvalues, vectors = found.eigenvalues, found.vectors
        time = torch.as_tensor(self.time, dtype=torch.float64, device=eigenvalues.device)
        rates = eigenvalues / self.gram.n
        momenta = None if self.momenta is None else as_float64(self.momenta).to(time)
        learnt = _learnt(rates, time) if momenta is None else _learnt_with_momentum(rates, time, momenta)
        # Below rounding the quotient learnt / eigenvalue is its limit, the total time / n.
        weights = torch.where(eigenvalues > 1e-15 * eigenvalues[-1], learnt / eigenvalues, time.sum() / self.gram.n)
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
