"""Early stopping read as ridge: loose (a factor 2 in time fits as well), so a measurement and not an identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs
from bench.theory.eigenlearning import solve_kappa


def effective_ridge(n: Any, time: Any, momentum: float = 0.0) -> Tensor:
    """The ridge delta = n / t of gradient descent on 1/(2 n) sum r^2 stopped at time t, for `eigenlearning`.

    A mode of rate lambda is learned to 1 - exp(-lambda t / n) by the flow and lambda / (lambda + delta) by ridge
    regression (eigenvalues lambda of the Gram matrix): both cross over at lambda ~ n / t.

    Args:
        n: training points, above 0.
        time: sum of the steps, above 0; broadcasts with n.
        momentum: beta of the heavy ball, whose time runs 1 / (1 - beta) times as fast; 0 to below 1.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be from 0 to below 1, not {momentum}.")
    points = inputs.above_zero("n", n)
    return points * (1 - momentum) / inputs.above_zero("time", time, points.device)


def crossover_time(eigenvalues: Any, n: Any, multiplicities: Any = None) -> Tensor:
    """1 / kappa_0(n), kappa_0 that without ridge: the time after which n limits the error, before which time does.

    Before it, train and test error follow the curve of infinitely many points (deep bootstrap, Nakkiran et al. 2021).
    Infinite from n = rank on. Arguments and errors as in `eigenlearning`; of the batch shape of spectrum and n.
    """
    lam, counts = inputs.spectrum(eigenvalues, multiplicities)
    points = inputs.at_least_zero("n", n, lam.device)
    points = points.expand(inputs.broadcast(eigenvalues=lam.shape[:-1], n=points.shape))
    return 1 / solve_kappa(lam, counts, points, torch.zeros_like(points))


def largest_stable_step(n: int, largest_eigenvalue: float, momentum: float = 0.0) -> float:
    """Steps of gradient descent on 1/(2 n) sum r^2 converge below this, 2 n (1 + beta) / lambda_max(K).

    Raises:
        ValueError: an argument out of range.
    """
    if n < 1 or largest_eigenvalue <= 0 or not 0 <= momentum < 1:
        raise ValueError(
            "n must be at least 1, largest_eigenvalue above 0 and momentum from 0 to below 1, "
            f"not {n}, {largest_eigenvalue} and {momentum}."
        )
    return 2 * n * (1 + momentum) / largest_eigenvalue
