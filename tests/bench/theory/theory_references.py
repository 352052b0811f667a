"""Independent references: 50-digit bisection for few modes, 80-bit bisection for many."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import numpy as np
import torch
from torch import Tensor

from models.limits import infinite_width
from models.mlp import mlp


@dataclass(frozen=True)
class Reference:
    kappa: float
    overfitting_coefficient: float
    test_mse: float
    train_mse: float
    total: float  # sum m L


def precise(lam: list[float], v2: list[float], counts: list[float], n: float, ridge: float, noise: float) -> Reference:
    """By bisection of log kappa with 50 digits; every formula as the paper writes it."""
    with mpmath.workdps(50):
        levels = [(mpmath.mpf(a), mpmath.mpf(b), mpmath.mpf(c)) for a, b, c in zip(lam, v2, counts, strict=True)]
        n_, delta, sigma2 = mpmath.mpf(n), mpmath.mpf(ridge), mpmath.mpf(noise)

        def excess(kappa: mpmath.mpf) -> mpmath.mpf:
            return sum(c * a / (a + kappa) for a, _, c in levels) + delta / kappa - n_

        low, high = mpmath.mpf(10) ** -120, (sum(c * a for a, _, c in levels) + delta) / n_
        for _ in range(120):
            middle = mpmath.sqrt(low * high)
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        # The bracket is now below 1e-30 in log kappa.
        kappa = mpmath.sqrt(low * high)
        total = sum(c * a / (a + kappa) for a, _, c in levels)
        e_0 = n_ / (n_ - sum(c * (a / (a + kappa)) ** 2 for a, _, c in levels))
        test = e_0 * (sum((1 - a / (a + kappa)) ** 2 * b for a, b, _ in levels) + sigma2)
        train = delta**2 / (n_ * kappa) ** 2 * test
        return Reference(*(float(x) for x in (kappa, e_0, test, train, total)))


def extended(lam: np.ndarray, v2: np.ndarray, n: float, ridge: float, noise: float) -> Reference:
    """The same with numpy's longdouble (64-bit mantissa on x86), for spectra of a thousand modes."""
    a, b = lam.astype(np.longdouble), v2.astype(np.longdouble)
    delta = np.longdouble(ridge)
    low, high = np.longdouble(1e-300), (a.sum() + delta) / n
    for _ in range(75):  # 690 / 2^75 is below longdouble's rounding
        middle = np.sqrt(low * high)
        low, high = (middle, high) if (a / (a + middle)).sum() + delta / middle > n else (low, middle)
    kappa = np.sqrt(low * high)
    learned = a / (a + kappa)
    e_0 = n / ((learned * kappa / (a + kappa)).sum() + delta / kappa)
    test = e_0 * (((kappa / (a + kappa)) ** 2 * b).sum() + noise)
    train = (delta / (n * kappa)) ** 2 * test
    return Reference(*(float(x) for x in (kappa, e_0, test, train, learned.sum())))


def network_kernel(d: int, depth: int = 4, b_std: float = 0.1):
    """The infinite-width NTK of a deep ReLU network: every level of hypercube, sphere and circle is above 0."""
    limit = infinite_width(mlp(d, 8, depth, 1, b_std=b_std))

    def kernel(x1: Tensor, x2: Tensor | None = None) -> Tensor:
        return limit(x1, x2).ntk

    return kernel


def corners(d: int) -> Tensor:
    """[2^d, d]; bit j of the row is x_j < 0."""
    return 1 - 2 * ((torch.arange(2**d)[:, None] >> torch.arange(d)) & 1).double()


def parities(d: int) -> Tensor:
    """[2^d points, 2^d modes]: bit j of a mode says whether x_j is in it."""
    x = corners(d)
    columns = [x[:, [j for j in range(d) if mode >> j & 1]].prod(1) for mode in range(2**d)]
    return torch.stack(columns, 1)
