"""Piecewise linear activations with kinks and jumps anywhere: clipped, shifted and thresholded functions.

phi(u) = a + b u + sum_i [bend_i (u - x_i)+ + jump_i 1(u > x_i)], so both dual maps are sums of moments of a bivariate
Gaussian above two thresholds (Rosenbaum 1961), whatever the two variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.limits.kinks import legendre

LONG = 30.0  # the probability is integrated from angles theta exp(-LONG) on
NODES = 128
FAR = 40.0  # deviations beyond which nothing is left
TOLERANCE = 1e-9  # of a straight piece, relative to the function's range
ERROR = 1e-10  # of the integral of the probability


@dataclass(frozen=True)
class Pieces:
    """A piecewise linear function on the range in which it was sampled."""

    offset: float
    slope: float
    points: tuple[float, ...]
    bends: tuple[float, ...]
    jumps: tuple[float, ...]


def pieces(phi, breaks: list[float], radius: float, device: torch.device) -> Pieces | None:  # type: ignore[no-untyped-def]
    """phi as straight lines between its kinks in (-radius, radius); None where it is not straight there."""
    ends = [-radius, *breaks, radius]
    lines: list[tuple[float, float]] = []
    largest = 0.0
    for low, high in pairwise(ends):
        margin = 1e-6 * (high - low)
        u = torch.linspace(low + margin, high - margin, 9, dtype=torch.float64, device=device)
        values = phi(u.clone()).detach().double()
        slope = float((values[-1] - values[0]) / (u[-1] - u[0]))
        offset = float(values[0] - slope * u[0])
        largest = max(largest, float(values.abs().max()))
        if float((values - offset - slope * u).abs().max()) > TOLERANCE * largest:
            return None
        lines.append((offset, slope))
    points, bends, jumps = [], [], []
    for point, (before, after) in zip(breaks, pairwise(lines), strict=True):
        bend = after[1] - before[1]
        jump = after[0] - before[0] + bend * point
        if abs(jump) <= 1e-6 * largest and abs(bend) > 1e-9:  # lines that meet tell where, better than bisection
            point, jump = (before[0] - after[0]) / bend, 0.0
        points.append(0.0 if abs(point) < 1e-12 * radius else point)
        bends.append(bend)
        jumps.append(jump)
    return Pieces(*lines[0], tuple(points), tuple(bends), tuple(jumps))


def dual(p: Pieces, theta: Tensor, nngp: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] at angles theta; q1, q2 broadcast to it."""
    s1, s2 = q1.sqrt(), q2.sqrt()
    value = nngp * p.slope**2
    # Means and covariances with a straight line of either side's nonlinear parts.
    rest1, rest2 = _mean(p, s1), _mean(p, s2)
    tilt1, tilt2 = _tilt(p, s1), _tilt(p, s2)
    value = value + p.offset**2 + p.offset * (rest1 + rest2) + p.slope * nngp * (tilt1 + tilt2)
    slope = torch.full_like(nngp, p.slope**2) + p.slope * (_above(p, s1) + _above(p, s2))
    for x, bend1, jump1 in zip(p.points, p.bends, p.jumps, strict=True):
        for y, bend2, jump2 in zip(p.points, p.bends, p.jumps, strict=True):
            both, first, second, product = _moments(x, y, theta, s1, s2)
            value = value + bend1 * bend2 * (product - y * first - x * second + x * y * both)
            value = value + bend1 * jump2 * (first - x * both) + jump1 * bend2 * (second - y * both)
            value = value + jump1 * jump2 * both
            slope = slope + bend1 * bend2 * both
    return value, slope


def _threshold(x: float, s: Tensor) -> Tensor:
    return (x / s.clamp_min(1e-150)).clamp(-FAR, FAR)


def _density(h: Tensor) -> Tensor:
    return torch.exp(-h * h / 2) / math.sqrt(2 * math.pi)


def _tail(h: Tensor) -> Tensor:
    """P(z > h)."""
    return torch.special.erfc(h / math.sqrt(2)) / 2


def _mean(p: Pieces, s: Tensor) -> Tensor:
    """E of the nonlinear part."""
    total = torch.zeros_like(s)
    for x, bend, jump in zip(p.points, p.bends, p.jumps, strict=True):
        h = _threshold(x, s)
        total = total + bend * (s * _density(h) - x * _tail(h)) + jump * _tail(h)
    return total


def _tilt(p: Pieces, s: Tensor) -> Tensor:
    """E[v f(u)] / k of the nonlinear part f: by parts the mean of its derivative, jumps included."""
    total = torch.zeros_like(s)
    for x, bend, jump in zip(p.points, p.bends, p.jumps, strict=True):
        h = _threshold(x, s)
        total = total + bend * _tail(h) + jump * _density(h) / s.clamp_min(1e-150)
    return total


def _above(p: Pieces, s: Tensor) -> Tensor:
    """E of the nonlinear part's slope, as autograd has it: without jumps."""
    total = torch.zeros_like(s)
    for x, bend in zip(p.points, p.bends, strict=True):
        total = total + bend * _tail(_threshold(x, s))
    return total


def _moments(x: float, y: float, theta: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E[1], E[u], E[v], E[u v] over u > x and v > y."""
    h, k = _threshold(x, s1), _threshold(y, s2)
    half = torch.tan(theta / 2).clamp(1e-100, 1e100)
    cosine, sine = theta.cos(), theta.sin()
    both = _probability(h, k, theta)
    # Given u = x, how far v's mean is below y, in deviations: (k - c h) / sin, without cancellation; and vice versa.
    one = _density(h) * _tail((k - h) / (2 * half) + (k + h) * half / 2)
    two = _density(k) * _tail((h - k) / (2 * half) + (k + h) * half / 2)
    edge = sine / (2 * math.pi) * torch.exp(-_exponent(h, k, half))
    first, second = one + cosine * two, cosine * one + two
    product = cosine * (both + h * one + k * two) + edge
    return both, s1 * first, s2 * second, s1 * s2 * product


def _exponent(h: Tensor, k: Tensor, half: Tensor) -> Tensor:
    """(h^2 - 2 c h k + k^2) / (2 sin^2) in the tangent of half the angle."""
    square = half * half
    return ((h - k) ** 2 / square + (h + k) ** 2 * square + 2 * (h * h + k * k)) / 8


def _probability(h: Tensor, k: Tensor, theta: Tensor) -> Tensor:
    """P(x > h, y > k) of standard normal variables at angle theta (Plackett 1954, from the nearer end).

    At angle 0 it is P(x > max(h, k)); its derivative is minus the density at (h, k) times the sine, which changes at
    angles of the order of |h - k|: integrated on a logarithmic scale.
    """
    opposite = theta > math.pi / 2
    near = torch.where(opposite, math.pi - theta, theta)
    other = torch.where(opposite, -k, k)
    total = torch.zeros_like(theta)
    for node, weight in zip(*legendre(NODES), strict=True):
        shrink = math.exp(-LONG * (node + 1) / 2)
        half = torch.tan(near * (shrink / 2)).clamp_min(1e-100)
        total += torch.exp(-_exponent(h, other, half)) * (weight * LONG / 2 * shrink)
    below = _tail(torch.maximum(h.expand_as(other), other)) - near * total / (2 * math.pi)
    return torch.where(opposite, _tail(h) - below, below)
