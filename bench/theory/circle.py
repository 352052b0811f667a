"""Spectra on the circle: a kernel of the angle has Fourier modes, cosine and sine of one frequency with one eigenvalue.

The theory fails here by design of the domain: in one dimension the predictions are far below kernel regression.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.theory.spectrum import Function, Kernel, Spectrum, Target, column_targets, make_target
from bench.theory.zonal import first_row, level_spectrum


def circle_spectrum(kernel: Kernel, points: int, frequencies: int | None = None, radius: float = 2**0.5) -> Spectrum:
    """Levels of frequency 0, 1, ... on M equidistant points: the discrete Fourier transform of K / M.

    Args:
        kernel: of the angle between two points alone.
        points: M; for the continuous circle, many, and `frequencies`.
        frequencies: the highest one kept, at most M / 2; None: all, the domain is the M points. The rest is the tail.
        radius: of the circle; that of the tasks is sqrt 2.

    Raises:
        ValueError: an argument out of range, or not a positive semidefinite kernel.
    """
    kept = _check(points, frequencies)
    profile = first_row(kernel, circle_points(points, radius))
    spectrum = torch.fft.rfft(profile).real / points
    sizes = frequency_counts(points)[: kept + 1].to(profile.device)
    return level_spectrum(spectrum[: kept + 1] * sizes, sizes, profile[0])


def circle_target(function: Function, points: int, frequencies: int | None = None, radius: float = 2**0.5) -> Target:
    """Power of any function of the points [M, 2] in each frequency.

    Raises:
        ValueError: an argument out of range, or values that are not finite.
    """
    kept = _check(points, frequencies)
    values, single = column_targets(function(circle_points(points, radius)))
    squares = (torch.fft.rfft(values, dim=0).abs() / points) ** 2 * frequency_counts(points)[:, None]
    return make_target(squares[: kept + 1].T, values.square().mean(0), single)


def circle_points(points: int, radius: float = 2**0.5) -> Tensor:
    """The M equidistant points from angle 0 on, float64 [M, 2]."""
    angles = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def frequency_counts(points: int) -> Tensor:
    """Modes of frequency 0 to M / 2 on M points: 1 for 0 and M / 2, else 2."""
    counts = torch.full((points // 2 + 1,), 2.0, dtype=torch.float64)
    counts[0] = 1
    if points % 2 == 0:
        counts[-1] = 1
    return counts


def _check(points: int, frequencies: int | None) -> int:
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points of the circle must be a whole number of at least 2, not {points!r}.")
    if frequencies is None:
        return points // 2
    if not isinstance(frequencies, int) or not 0 <= frequencies <= points // 2:
        raise ValueError(f"frequencies must be a whole number from 0 to M / 2 = {points // 2}, not {frequencies!r}.")
    return frequencies
