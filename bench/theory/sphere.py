"""Spectra on the sphere in d >= 3 dimensions: a kernel of x . x' has one eigenvalue for all harmonics of a degree.

lambda_k is the mean of K(cos a) P_k(cos a) over the angle a between two random points, of density sin^(d-2) a, with the
Gegenbauer polynomial P_k, P_k(1) = 1. In the angle, kernels of networks are smooth (in the cosine they have a root at
1), so Gauss-Legendre quadrature over [0, pi] converges exponentially.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from scipy.special import roots_legendre
from torch import Tensor

from bench.theory.spectrum import Kernel, Spectrum, Target, column_targets, make_target
from bench.theory.zonal import first_row, level_spectrum, sampled_power

_NODES = 512


def sphere_spectrum(kernel: Kernel, d: int, degrees: int = 60, radius: float | None = None) -> Spectrum:
    """Levels 0 to `degrees` of a kernel of x . x' on the sphere of this radius (None: sqrt d); the rest is the tail.

    Raises:
        ValueError: an argument out of range, or not a positive semidefinite kernel.
    """
    _check(d, degrees)
    radius = math.sqrt(d) if radius is None else radius
    angles, weights = _quadrature(d)
    points = torch.zeros(len(angles) + 1, d, dtype=torch.float64)
    points[0, 0] = radius
    points[1:, 0], points[1:, 1] = radius * angles.cos(), radius * angles.sin()
    profile = first_row(kernel, points)
    sizes = harmonic_counts(d, degrees)
    polynomials = torch.stack(list(_gegenbauer(angles.cos(), d, degrees)))
    traces = (polynomials * weights) @ profile[1:].cpu() * sizes
    spectrum = level_spectrum(traces, sizes, profile[0].cpu())
    device = profile.device
    return Spectrum(spectrum.eigenvalues.to(device), sizes.to(device), spectrum.trace.to(device))


def zonal_target(function: Callable[[Tensor], Tensor], d: int, degrees: int = 60) -> Target:
    """Power in each degree of a target of one direction, f(cos a) with a the angle to it; cosines [q] -> [q] or [q, c].

    Raises:
        ValueError: an argument out of range, or values that are not finite.
    """
    _check(d, degrees)
    angles, weights = _quadrature(d)
    cosines = angles.cos()
    values, single = column_targets(function(cosines))
    polynomials = torch.stack(list(_gegenbauer(cosines, d, degrees)))
    coefficients = (polynomials * weights) @ values * harmonic_counts(d, degrees).sqrt()[:, None]
    return make_target((coefficients**2).T, weights @ values**2, single)


def sphere_target_from_sample(x: Tensor, y: Tensor, degrees: int = 10) -> Target:
    """Power of any target from a sample: x [N, d] of any one norm, y [N] or [N, c]; unbiased (see `sampled_power`)."""
    d = x.shape[-1]
    _check(d, degrees)
    square = float(x.square().sum(1).mean())

    def polynomials(inner: Tensor) -> Iterator[Tensor]:
        return _gegenbauer((inner / square).clamp(-1, 1), d, degrees)

    return sampled_power(x, y, harmonic_counts(d, degrees), polynomials)


def harmonic_counts(d: int, degrees: int) -> Tensor:
    """The number of independent harmonics of degree 0 to `degrees` in d dimensions, float64 [degrees + 1]."""
    counts = [math.comb(d + k - 1, k) - math.comb(d + k - 3, k - 2) if k > 1 else (1, d)[k] for k in range(degrees + 1)]
    return torch.tensor([float(count) for count in counts], dtype=torch.float64)


@lru_cache(maxsize=32)
def _quadrature(d: int) -> tuple[Tensor, Tensor]:
    """Angles and weights, of sum 1, of the density sin^(d-2), over as much of [0, pi] as it and any P_k^2 fill."""
    nodes, weights = (torch.from_numpy(array) for array in roots_legendre(_NODES))
    # Around pi / 2, m_k P_k^2 times the density is e^(-d w^2 / 2) (d w^2)^k / k! at most: below e^-40 beyond this w.
    half = min(math.pi / 2, math.sqrt((80 + 2 * _NODES) / d))
    angles = math.pi / 2 + half * nodes
    weights = weights * angles.sin() ** (d - 2)
    return angles, weights / weights.sum()


def _gegenbauer(t: Tensor, d: int, degrees: int) -> Iterator[Tensor]:
    """P_0(t), ..., by (k + d - 2) P_(k+1) = (2 k + d - 2) t P_k - k P_(k-1), stable because |P_k| <= 1."""
    before, now = torch.zeros_like(t), torch.ones_like(t)
    for k in range(degrees + 1):
        yield now
        before, now = now, ((2 * k + d - 2) * t * now - k * before) / (k + d - 2)


def _check(d: int, degrees: int) -> None:
    if not isinstance(d, int) or d < 3:
        raise ValueError(f"d of the sphere must be a whole number of at least 3, not {d!r} (for 2, see the circle).")
    if not isinstance(degrees, int) or not 0 <= degrees <= _NODES // 4:
        raise ValueError(f"degrees must be a whole number from 0 to {_NODES // 4}, not {degrees!r}.")
