"""Kernel predictors: what a network would output if its kernel had been this one from the start, and fixed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.gram import Base, Gram, as_float64
from bench.ntk.algebra import Spectrum, as_matrix, solve, spectrum

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
        momenta = None if self.momenta is None else as_float64(self.momenta)
        learnt = -torch.expm1(-rates * time) if time.ndim == 0 else shares_learnt(rates, time, [len(time)], momenta)[0]
        weights = _quotient(learnt, eigenvalues, time.sum() / self.gram.n)
        return vectors @ (weights[:, None] * (vectors.T @ target))


def course(
    kernel: Any, y: Any, steps: Any, at: Sequence[int], momenta: Any = None, f_0: Any = None,
    found: Spectrum | None = None,
) -> Tensor:  # fmt: skip
    """The outputs along gradient descent on ``1/(2n) sum r^2`` in a kernel that stays as it is.

    Args:
        kernel: [n + n_test, n] or [n + n_test, n, c, c], train rows first.
        y: targets [n, c].
        steps: all of them, in order.
        at: after how many steps to look, ascending.
        momenta: one a step, as for ``KernelPredictor``; at a count the point to which momentum carried it.
        f_0: [n + n_test, c], where it starts; zero by default.
        found: the spectrum of the kernel on the training points, where it is known.

    Returns:
        [len(at), n + n_test, c].
    """
    rows = as_float64(kernel)
    gram = Gram(rows[: rows.shape[1]])
    start = Base("zero" if f_0 is None else "init").of(f_0, gram, "course")
    target = gram.flat(gram.targets(y, None if start is None else start[: gram.n]))
    found = spectrum(gram.matrix) if found is None else found
    learnt = shares_learnt(
        found.eigenvalues / gram.n, as_float64(steps), at, None if momenta is None else as_float64(momenta)
    )
    total = torch.cat([learnt.new_zeros(1), as_float64(steps).cumsum(0).to(learnt)])[list(at)]
    weights = _quotient(learnt, found.eigenvalues, total[:, None] / gram.n)
    solutions = found.vectors @ (weights[:, :, None] * (found.vectors.T @ target))  # [len(at), n, c], or [.., n c, 1]
    outputs = as_matrix(rows) @ solutions.movedim(0, 1).flatten(1)
    outputs = outputs.unflatten(1, (len(weights), -1)).movedim(1, 0).reshape(len(weights), len(rows), -1)
    return outputs if start is None else outputs + start


def _quotient(learnt: Tensor, eigenvalues: Tensor, limit: Tensor) -> Tensor:
    """learnt / eigenvalue; below rounding its limit, the total time / n."""
    return torch.where(eigenvalues > 1e-15 * eigenvalues[-1], learnt / eigenvalues, limit)


def shares_learnt(rates: Tensor, steps: Tensor, at: Sequence[int], momenta: Tensor | None = None) -> Tensor:
    """The share of its target that each mode has learnt after some of the steps, without cancellation.

    ``1 - prod(1 - rate step)``; with momenta, that at the point to which momentum carried it.

    Args:
        rates: [modes].
        at: after how many steps, ascending.

    Returns:
        [len(at), modes].
    """
    steps = steps.to(rates)
    ends = [0, *at]
    shares = []
    if momenta is not None and bool(momenta.any()):
        share = reached = torch.zeros_like(rates)
        listed = list(zip(steps, momenta.to(rates), strict=True))
        for begin, end in pairwise(ends):
            for step, momentum in listed[begin:end]:
                before, reached = reached, share + step * rates * (1 - share)
                share = reached + momentum * (reached - before)
            shares.append(share)
        return torch.stack(shares)
    share = torch.zeros_like(rates)
    for begin, end in pairwise(ends):
        if end > begin:
            shrink = rates * steps[begin:end, None]
            slow = shrink.amax(0) < 0.5
            slowly = -torch.expm1(torch.log1p(-shrink.clamp_max(0.5)).sum(0))
            more = torch.where(slow, slowly, 1 - (1 - shrink).prod(0))
            share = share + more - share * more
        shares.append(share)
    return torch.stack(shares)
