"""Dual maps of activations with kinks away from 0 at any two variances: nested quadrature for each pair.

Where two kinks meet, x_i / s1 = x_j / s2 at angle 0, the maps are not smooth in the deviations s1, s2 and the angle, so
no series of the three converges. Every pair gets its own nodes instead: over u outside and v given u inside, both split
at the kinks, and the outer one also around the points where v's mean passes a kink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.limits.kinks import RING, WIDE, kinks, panels
from models.limits.quadrature import CHUNK, Phi, converged, with_slope

RADIUS = 8.0  # exp(-RADIUS^2 / 2) = 1e-14
EDGES = (-3.0, 0.0, 3.0)  # so that no panel is too wide for its nodes
ENOUGH = 1e-8  # kinks are found to 1e-8 of the range, so that more nodes do not help
COUNTS = (8, 12, 16, 24, 36)  # Gauss-Legendre nodes of a panel to try
ANGLES = (1e-9, 1e-3, 0.1, 1.0, 2.5)  # at which they are tried


@dataclass(frozen=True)
class Nested:
    """Nodes for deviations in [low, high]; `error` is relative to each map's largest value."""

    low: float
    high: float
    kinks: tuple[float, ...]
    count: int  # of a panel
    error: float


def nested(phi: Phi, low: float, high: float, device: torch.device) -> Nested:
    """As many nodes of a panel as needed: more change nothing, at some deviations and angles."""
    points = tuple(kinks(phi, RADIUS * high, high, device))
    s = torch.linspace(low, high, 4, dtype=torch.float64, device=device)
    theta = torch.tensor(ANGLES, dtype=torch.float64, device=device)[:, None, None].expand(-1, 4, 4)
    found, error = None, math.inf
    for count in COUNTS:
        finer = torch.stack(pair_maps(phi, s[:, None], s, theta, Nested(low, high, points, count, error)))
        if found is not None:
            size = finer.flatten(1).abs().amax(1)
            difference = (finer - found).flatten(1).abs().amax(1)
            error = float((difference / torch.where(size > 0, size, 1.0)).max())
            if error <= ENOUGH:
                break
        found = finer
    return Nested(low, high, points, count, converged(error))


def pair_maps(phi: Phi, s1: Tensor, s2: Tensor, theta: Tensor, plan: Nested) -> tuple[Tensor, Tensor]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for deviations s1, s2 and angles theta, which broadcast to theta.

    Computed in float64 and returned in the dtype of theta.
    """
    flat = [t.expand(theta.shape).reshape(-1).double() for t in (s1, s2, theta)]
    evaluations = (4 * len(plan.kinks) + 4) * (len(plan.kinks) + 4) * plan.count**2
    size = max(1, CHUNK // evaluations)  # of pairs
    chunks = zip(*(t.split(size) for t in flat), strict=True)
    parts = [_chunk(phi, first, second, angles, plan) for first, second, angles in chunks]
    value, slope = (torch.cat([part[which] for part in parts]).to(theta).reshape(theta.shape) for which in (0, 1))
    return value, slope


def _chunk(phi: Phi, s1: Tensor, s2: Tensor, theta: Tensor, plan: Nested) -> tuple[Tensor, Tensor]:
    """Both maps [p] for p pairs."""
    points = torch.tensor(plan.kinks, dtype=torch.float64, device=theta.device)
    cosine, sine = theta.cos()[:, None], theta.sin().clamp_min(1e-12)[:, None]
    first, second = (points / s.clamp_min(1e-150)[:, None] for s in (s1, s2))  # [p, kinks], in deviations
    width = sine / cosine.abs().clamp_min(1e-3)
    ring = torch.tensor(RING, dtype=torch.float64, device=theta.device)
    around = (second / torch.where(cosine < 0, -1.0, 1.0) / cosine.abs().clamp_min(1e-3))[..., None]
    around = (around + ring * width[..., None]).flatten(1)
    around = torch.where(width < WIDE, around, RADIUS)  # no edge
    fixed = torch.tensor(EDGES, dtype=torch.float64, device=theta.device)
    z, weight = panels(torch.cat([first, around, fixed.expand(len(theta), -1)], 1), plan.count, RADIUS)  # [p, outer]
    weight = weight * torch.exp(-z * z / 2) / (2 * math.pi)
    mean = cosine * z
    above = (second[:, None] - mean[..., None]) / sine[..., None]  # where v passes its kinks
    x, inner = panels(torch.cat([above, fixed.expand(*z.shape, -1)], -1), plan.count, RADIUS)  # [p, outer, inner]
    inner = inner * torch.exp(-x * x / 2)
    u = s1[:, None] * z
    v = s2[:, None, None] * (mean[..., None] + sine[..., None] * x)
    value, slope = (
        (f * (g * inner).sum(-1) * weight).sum(-1) for f, g in zip(with_slope(phi, u), with_slope(phi, v), strict=True)
    )
    return value, slope
