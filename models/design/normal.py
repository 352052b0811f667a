"""Probabilities and truncated moments of two correlated standard Gaussians, in closed form up to Owen's T.

Everything takes the angle theta = arccos(correlation): next to 0 the correlation has lost half of its digits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NODES = 12  # of Gauss-Legendre for Owen's T, on one side of 0: the error is (1 + sqrt 2)^-48
LEAST = 1e-150  # least sin(theta): its square is still a number
FAR = 40.0  # thresholds are cut here: exp(-FAR^2 / 2) = 0


class Truncated(NamedTuple):
    """Moments of (u, v) above the thresholds (h, k), each broadcast over these and theta."""

    both: Tensor  # P(u > h, v > k)
    u_given: Tensor  # P(v > k | u = h)
    v_given: Tensor  # P(u > h | v = k)
    density: Tensor  # of (u, v) at (h, k), times sin(theta)


def density(h: Tensor) -> Tensor:
    """The standard Gaussian density."""
    return torch.exp(h * h / -2) / math.sqrt(2 * math.pi)


def above(h: Tensor) -> Tensor:
    """P(u > h)."""
    return torch.special.erfc(h / math.sqrt(2)) / 2


def owens_t(h: Tensor, a: Tensor, ah: Tensor) -> Tensor:
    """T(h, a) = 1/(2 pi) int_0^a exp(-h^2 (1 + x^2) / 2) / (1 + x^2) dx (Owen 1956); `ah` is a h to full precision.

    For a > 1 by T(h, a) + T(ah, 1 / a) = (p + q) / 2 - p q, with p = P(u > |h|) and q = P(u > |ah|), odd in a:
    the integrand's poles, at +-i, are then far from the interval.
    """
    large = a.abs() > 1
    base = torch.where(large, ah, h)
    end = torch.where(large, 1 / torch.where(large, a, 1.0), a)
    nodes, weights = np.polynomial.legendre.leggauss(2 * NODES)  # the integrand is even: half of the nodes do
    total, square, falling = torch.zeros_like(end), end * end, base * base / -2
    for x, weight in zip(nodes[NODES:].tolist(), weights[NODES:].tolist(), strict=True):
        growth = (square * x**2).add_(1)
        total.add_(torch.exp(falling * growth).div_(growth), alpha=weight)
    near = total.mul_(end).div_(2 * math.pi)
    q, p = above(h.abs()), above(ah.abs())  # by |h|, |ah|: upper tails keep their digits
    reflected = torch.sign(a) * ((q + p) / 2 - q * p)
    return torch.where(large, reflected - near, near)


def truncated(h: Tensor, k: Tensor, theta: Tensor) -> Truncated:
    """Moments above h and k, for theta in [0, pi]; exact to rounding in float64.

    P(u > h, v > k) = [P(u > h) + P(v > k)] / 2 - T(h, a_h) - T(k, a_k) - [h, k on two sides of 0] / 2 (Owen 1956).
    """
    h, k = (torch.where(t == 0, LEAST, t.clamp(-FAR, FAR)) for t in (h, k))  # 0 counts as above 0
    sin, half = torch.sin(theta).clamp_min(LEAST), torch.sin(theta / 2).square()
    beyond_h = ((k - h) + 2 * h * half) / sin  # (k - rho h) / sin
    beyond_k = ((h - k) + 2 * k * half) / sin
    apart = (h < 0) != (k < 0)
    both = (above(h) + above(k)) / 2 - owens_t(h, beyond_h / h, beyond_h) - owens_t(k, beyond_k / k, beyond_k)
    both = (both - apart.to(theta) / 2).clamp_min(0)
    return Truncated(both, above(beyond_h), above(beyond_k), density(h) * density(beyond_h))
