"""Spectra on the hypercube {-1, 1}^d: a kernel of x . x' has one eigenvalue for all C(d, k) parities of k bits.

lambda_k = sum_m 2^-d C(d, m) K(1 - 2 m / d) P_k(m) with the Krawtchouk polynomial P_k, P_k(0) = 1, at distance m.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from bench.theory.spectrum import Function, Kernel, Spectrum, Target, column_targets, make_target
from bench.theory.zonal import first_row, level_spectrum, sampled_power

_MOST_D = 1000  # C(d, k) is a float64
_MOST_CORNERS = 20  # all 2^d values of a target in memory


def hypercube_spectrum(kernel: Kernel, d: int) -> Spectrum:
    """The d + 1 levels of a kernel of x . x' on {-1, 1}^d; levels below its rounding are 0 and in the tail.

    Raises:
        ValueError: d out of range, or not a positive semidefinite kernel of x . x'.
    """
    _check(d, _MOST_D)
    points = torch.ones(d + 1, d, dtype=torch.float64).tril(-1).mul(-2).add(1)  # row m has m bits flipped
    profile = first_row(kernel, points)
    traces = profile @ _weights(d).to(profile.device)
    return level_spectrum(traces, level_sizes(d).to(profile.device), profile[0])


def hypercube_target(function: Function, d: int) -> Target:
    """Power of any function on {-1, 1}^d in each level, exactly, from its values on all 2^d corners (d up to 20).

    Raises:
        ValueError: d out of range, or values that are not finite.
    """
    _check(d, _MOST_CORNERS)
    codes = torch.arange(2**d)
    corners = 1 - 2 * ((codes[:, None] >> torch.arange(d)) & 1).to(torch.float64)
    values, single = column_targets(function(corners))
    squares = walsh(values) ** 2
    level = corners.lt(0).sum(1)
    power = torch.zeros(d + 1, values.shape[1], dtype=torch.float64).index_add_(0, level, squares)
    return make_target(power.T, values.square().mean(0), single)


def hypercube_target_from_sample(x: Tensor, y: Tensor) -> Target:
    """The same from a sample: x [N, d] of +-1, y [N] or [N, c]; unbiased (see `sampled_power`), for any d."""
    d = x.shape[-1]
    _check(d, _MOST_D)

    def polynomials(inner: Tensor) -> Iterator[Tensor]:
        distance = ((d - inner) / 2).round().long()
        for k in range(d + 1):
            yield _krawtchouk(d, k).to(inner.device)[distance]

    return sampled_power(x, y, level_sizes(d), polynomials)


def level_sizes(d: int) -> Tensor:
    """C(d, k) for k = 0 to d, float64 [d + 1]."""
    return torch.tensor([float(math.comb(d, k)) for k in range(d + 1)], dtype=torch.float64)


def walsh(values: Tensor) -> Tensor:
    """Coefficients in the parities, [2^d, ...], of values [2^d, ...] at the corners; bit j of their index is x_j < 0.

    Bit j of the index of a coefficient says whether x_j is in its parity. Fast Walsh-Hadamard transform, O(d 2^d).
    """
    size, rest = values.shape[0], values.shape[1:]
    if size & (size - 1):
        raise ValueError(f"values must have 2^d rows, not {size}.")
    result, step = values, 1
    while step < size:
        pairs = result.reshape(-1, 2, step, *rest)
        result = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(size, *rest)
        step *= 2
    return result / size


@lru_cache(maxsize=32)
def _table(d: int) -> tuple[tuple[int, ...], ...]:
    """K_k(m) = C(d, k) P_k(m), exact whole numbers: (k + 1) K_(k+1) = (d - 2 m) K_k - (d - k + 1) K_(k-1)."""
    before, now = [0] * (d + 1), [1] * (d + 1)
    table = [tuple(now)]
    for k in range(d):
        following = [((d - 2 * m) * now[m] - (d - k + 1) * before[m]) // (k + 1) for m in range(d + 1)]
        before, now = now, following
        table.append(tuple(now))
    return tuple(table)


@lru_cache(maxsize=32)
def _weights(d: int) -> Tensor:
    """[d + 1 distances, d + 1 levels]: 2^-d C(d, m) C(d, k) P_k(m), each correctly rounded."""
    sizes = [math.comb(d, m) for m in range(d + 1)]
    rows = [[sizes[m] * row[m] / 2**d for row in _table(d)] for m in range(d + 1)]
    return torch.tensor(rows, dtype=torch.float64)


def _krawtchouk(d: int, k: int) -> Tensor:
    """P_k(m) for m = 0 to d, 1 at m = 0."""
    return torch.tensor([value / math.comb(d, k) for value in _table(d)[k]], dtype=torch.float64)


def _check(d: int, most: int) -> None:
    if not isinstance(d, int) or isinstance(d, bool) or not 1 <= d <= most:
        raise ValueError(f"d of the hypercube must be a whole number from 1 to {most}, not {d!r}.")
