"""How well a kernel fits a target: alignment and its chance level, and the target's power in the leading modes.

K is a Gram matrix [n, n] and y [n, c] the target at the same points; both are centred (``K_c = H K H``, ``y_c = H y``
with ``H = 1 - 11'/n``), but in ``raw_alignment``; sums are in float64. Alignment is set by the largest eigenvalues, and
on the points trained on it grows for random labels, too: compare it with its chance level, on held-out data.
All raise ValueError for shapes that do not fit, and are nan for a target, or a kernel, that is the same everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 4  # points: the variance over permutations divides by n - 3


class Moments(NamedTuple):
    """What a random permutation of the labels does to the alignment."""

    mean: float
    deviation: float

    def z(self, value: float) -> float:
        """How many standard deviations a value lies above the mean; 0 where every permutation gives the mean."""
        return 0.0 if self.deviation == 0 else (value - self.mean) / self.deviation


def alignment(kernel: Tensor, y: Tensor) -> float:
    """Centred kernel-target alignment, ``<K_c, y_c y_c'> / (|K_c| |y_c y_c'|)`` (Cortes et al. 2012)."""
    kernel, y = _centred(kernel, y)
    return _cosine(kernel, y @ y.T)


def raw_alignment(kernel: Tensor, y: Tensor) -> float:
    """The same without centring (Cristianini et al. 2001): nearly 1 for any kernel where one class is rare."""
    kernel, y = _columns(kernel, y)
    return _cosine(kernel, y @ y.T)


def chance(kernel: Tensor, y: Tensor) -> Moments:
    """Exact mean and standard deviation of ``alignment`` over all permutations of the labels; any number of classes.

    The mean is ``tr K_c tr T / ((n - 1) |K_c| |T|)``, T = y_c y_c'; the variance that of the RV coefficient
    (Kazi-Aoual, Hitier, Sabatier, Lebreton 1995, "Refined approximations to permutation tests", section 3).

    Raises:
        ValueError: fewer than four points.
    """
    n = len(kernel)
    if n < LEAST:
        raise ValueError(f"A chance level needs at least {LEAST} points, not {n}.")
    one, y = _centred(kernel, y)
    two = y @ y.T
    traces, squares, diagonals = [], [], []
    for matrix in (one, two):
        trace, square = matrix.trace(), matrix.square().sum()
        traces.append(trace)
        squares.append((n - 1) * square - trace.square())
        diagonals.append(n * (n + 1) * matrix.diagonal().square().sum() - (n - 1) * (trace.square() + 2 * square))
    mean = traces[0] * traces[1] / (n - 1)
    variance = 2 * squares[0] * squares[1] / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance = variance + diagonals[0] * diagonals[1] / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    norm = one.norm() * two.norm()
    return Moments(float(mean / norm), float(variance.clamp_min(0).sqrt() / norm))


def permutation_z(kernel: Tensor, y: Tensor) -> float:
    """How many standard deviations the alignment lies above that of permuted labels (``chance``)."""
    return chance(kernel, y).z(alignment(kernel, y))


def cumulative_power(kernel: Tensor, y: Tensor) -> Tensor:
    """C(rho), [n]: entry r - 1 is the share of the target in the first r = rho n eigenvectors of K_c.

    Canatar, Bordelon and Pehlevan 2021. C is rho itself where kernel and target have nothing to do with each other.
    """
    kernel, y = _centred(kernel, y)
    vectors = torch.linalg.eigh(kernel).eigenvectors.flip(1)
    power = (vectors.T @ y).square().sum(1).cumsum(0)
    return power / power[-1]


def power_at(power: Tensor, rho: float) -> float:
    """C(rho) of ``cumulative_power``'s result, between its entries by linear interpolation; C(0) = 0.

    Raises:
        ValueError: a share rho that is not from 0 to 1.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be a share of the modes from 0 to 1, not {rho!r}.")
    padded = torch.cat([power.new_zeros(1), power])
    position = rho * len(power)
    low = min(int(position), len(power) - 1)
    return float(padded[low] + (position - low) * (padded[low + 1] - padded[low]))


def area(power: Tensor) -> float:
    """Area under C from rho = 0 to 1: 1/2 by chance, at most 1."""
    return float((power.sum() - power[-1] / 2) / len(power))


def _cosine(one: Tensor, two: Tensor) -> float:
    """nan where one of them is zero: a constant target is aligned with nothing."""
    return float((one * two).sum() / (one.norm() * two.norm()))


def _centred(kernel: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kernel, y = _columns(kernel, y)
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean(), y - y.mean(0)


def _columns(kernel: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """[n, n] and [n, c], float64."""
    if kernel.ndim != 2 or y.ndim not in (1, 2) or not kernel.shape[0] == kernel.shape[1] == len(y):
        raise ValueError(f"kernel must be [n, n] and y [n] or [n, c], not {[*kernel.shape]} and {[*y.shape]}.")
    return kernel.double(), (y[:, None] if y.ndim == 1 else y).double()
