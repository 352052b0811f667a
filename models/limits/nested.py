"""Dual maps at any two variances by nested quadrature for each pair, where no table of series follows them.

Where two kinks away from 0 meet, x_i / s1 = x_j / s2 at angle 0, the maps are not smooth in the deviations s1, s2 and
the angle; and for inputs far larger than the scale on which an activation varies even tanh is nearly a jump. Every pair
gets its own nodes instead: over u outside and v given u inside, both split at the kinks and where the activation bends
(its outline, whatever the inputs' scale), and the outer one also around the points where v's mean passes these.
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
SHARE = 0.03  # of the largest deviation, at which they are tried besides the ends


@dataclass(frozen=True)
class Nested:
    """Nodes for deviations in [low, high]; `error` is relative to each map's largest value (of a pair, with bends)."""

    low: float
    high: float
    kinks: tuple[float, ...]
    bends: tuple[float, ...]  # where a smooth part needs other polynomials
    count: int  # of a panel
    error: float

    @property
    def outer(self) -> int:
        """Nodes of each pair."""
        return (4 * len(self.kinks) + 2 * len(self.bends) + 4) * self.count

    @property
    def inner(self) -> int:
        """Nodes of each outer one."""
        return (len(self.kinks) + len(self.bends) + 4) * self.count


def nested(phi: Phi, low: float, high: float, device: torch.device, bends: list[float] | None = None) -> Nested:
    """As many nodes of a panel as needed: more change nothing, at some deviations and angles.

    `bends`: the outline of an activation without kinks away from 0, to be followed at any scale.
    """
    points = tuple(kinks(phi, RADIUS * high, high, device)) if bends is None else (0.0,)
    others = () if bends is None else tuple(x for x in bends if x != 0)
    s = torch.linspace(low, high, 4, dtype=torch.float64, device=device)
    if bends is not None:
        s = torch.stack([s[0], (SHARE * s[-1]).clamp_min(low), s[-1]])
    theta = torch.tensor(ANGLES, dtype=torch.float64, device=device)[:, None, None].expand(-1, len(s), len(s))
    found, error = None, math.inf
    for count in COUNTS:
        finer = torch.stack(pair_maps(phi, s[:, None], s, theta, Nested(low, high, points, others, count, error)))
        if found is not None:
            # With an outline of each two deviations by themselves: values may differ by many orders.
            size = finer.abs().amax((1, 2, 3) if bends is None else 1, keepdim=True)
            error = float(((finer - found).abs() / torch.where(size > 0, size, 1.0)).max())
            if error <= ENOUGH:
                break
        found = finer
    return Nested(low, high, points, others, count, converged(error))


def pair_maps(phi: Phi, s1: Tensor, s2: Tensor, theta: Tensor, plan: Nested) -> tuple[Tensor, Tensor]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for deviations s1, s2 and angles theta, which broadcast to theta.

    Computed in float64 and returned in the dtype of theta.
    """
    flat = [t.expand(theta.shape).reshape(-1).double() for t in (s1, s2, theta)]
    size = max(1, CHUNK // (plan.outer * plan.inner))  # of pairs
    chunks = zip(*(t.split(size) for t in flat), strict=True)
    parts = [_chunk(phi, first, second, angles, plan) for first, second, angles in chunks]
    value, slope = (torch.cat([part[which] for part in parts]).to(theta).reshape(theta.shape) for which in (0, 1))
    return value, slope


def _chunk(phi: Phi, s1: Tensor, s2: Tensor, theta: Tensor, plan: Nested) -> tuple[Tensor, Tensor]:
    """Both maps [p] for p pairs."""
    points = torch.tensor((*plan.kinks, *plan.bends), dtype=torch.float64, device=theta.device)
    cosine, sine = theta.cos()[:, None], theta.sin().clamp_min(1e-12)[:, None]
    first, second = (points / s.clamp_min(1e-150)[:, None] for s in (s1, s2))  # [p, points], in deviations
    width = sine / cosine.abs().clamp_min(1e-3)
    ring = torch.tensor(RING, dtype=torch.float64, device=theta.device)
    passing = second / torch.where(cosine < 0, -1.0, 1.0) / cosine.abs().clamp_min(1e-3)
    steep, bent = passing.split([len(plan.kinks), len(plan.bends)], 1)
    around = torch.cat([(steep[..., None] + ring * width[..., None]).flatten(1), bent], 1)
    around = torch.where(width < WIDE, around, RADIUS)  # no edge
    fixed = torch.tensor(EDGES, dtype=torch.float64, device=theta.device)
    z, weight = panels(torch.cat([first, around, fixed.expand(len(theta), -1)], 1), plan.count, RADIUS)  # [p, outer]
    weight = weight * torch.exp(-z * z / 2) / (2 * math.pi)
    both = z.new_zeros(2, len(theta))
    per_part = max(1, CHUNK // plan.inner)  # of outer nodes: those of one pair may be too many
    for part, weights in zip(z.split(per_part, 1), weight.split(per_part, 1), strict=True):
        mean = cosine * part
        above = (second[:, None] - mean[..., None]) / sine[..., None]  # where v passes its kinks
        x, inner = panels(torch.cat([above, fixed.expand(*part.shape, -1)], -1), plan.count, RADIUS)  # [p, part, inner]
        inner = inner * torch.exp(-x * x / 2)
        u = s1[:, None] * part
        v = s2[:, None, None] * (mean[..., None] + sine[..., None] * x)
        for which, (f, g) in enumerate(zip(with_slope(phi, u), with_slope(phi, v), strict=True)):
            both[which] += (f * (g * inner).sum(-1) * weights).sum(-1)
    return both[0], both[1]
