"""Where a function of one variable has kinks or jumps, and quadrature that is split there."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from models.limits.state import NoInfiniteWidthLimit

POINTS = 17  # Chebyshev points of a panel
RESOLVED = 1e-11  # size of the last coefficients, relative to the largest value, of a smooth piece
SMALL = 1e-4  # half the width of a panel that smooth functions do not need, relative to the whole range
NARROW = 1e-13  # and of one that is small enough
SPLIT = 0.48619  # where a panel is cut: halving would meet kinks at round numbers, and no panel would have them inside
MOST = 12  # kinks; what has more is refused
PANELS = 20_000  # panels to try in all
BENDS = 28  # points of an outline, at most
SMALLEST = 1e-14  # of the range: a panel that is not divided further
NEAR = 1.0  # inputs between 0 and here are one panel at first
FOLLOWED = 1e-9  # size of the last coefficients of a panel of an outline, which quadrature follows with more nodes
FLOOR = 1e-3  # of the largest value: what is smaller need not be followed as closely
STRAIGHT = 1e-12  # of a panel's largest value: what may be missing of a straight line
RING = (-6.0, 0.0, 6.0)  # where the outer integrand changes fast, around a kink, in widths of the inner Gaussian
WIDE = 0.7  # a width that needs no such care, in deviations


def kinks(phi, radius: float, deviation: float, device: torch.device) -> list[float]:  # type: ignore[no-untyped-def]
    """Points in (-radius, radius) where `phi` is not smooth, by bisecting what a polynomial does not resolve.

    What lies far out counts less: under the Gaussian of this standard deviation. Raises NoInfiniteWidthLimit where
    there are more than MOST.
    """
    found: list[tuple[float, float]] = []
    panels = torch.tensor([[-radius, 0.0], [0.0, radius]], dtype=torch.float64, device=device)
    nodes = torch.cos(torch.arange(POINTS, dtype=torch.float64, device=device) * math.pi / (POINTS - 1))
    k = torch.arange(POINTS, dtype=torch.float64, device=device)
    transform = torch.linalg.inv(torch.cos(k * torch.acos(nodes)[:, None]))
    scale, tried = 0.0, 0
    while len(panels):
        tried += len(panels)
        if tried > PANELS or len(panels) > 64 * MOST:
            raise _too_many()
        middle, half = panels.mean(1, keepdim=True), (panels[:, 1:] - panels[:, :1]) / 2
        u = middle + half * nodes
        values = phi(u.flatten().clone()).detach().reshape(u.shape).to(torch.float64)
        weighted = values * torch.exp(-(u**2) / (4 * max(deviation, 1e-300) ** 2))
        scale = max(scale, float(weighted.abs().max()))
        tail = (weighted @ transform.T)[:, -4:].abs().amax(1)
        rough = ~(tail <= RESOLVED * scale) & (half[:, 0] > NARROW * radius)
        # The effect of a kink shrinks with the panel: it is where panels had to become small.
        small = ~rough & (half[:, 0] <= SMALL * radius)
        found += zip(middle[small, 0].tolist(), half[small, 0].tolist(), strict=True)
        rest = panels[rough]
        centre = rest[:, 0] + SPLIT * (rest[:, 1] - rest[:, 0])
        panels = torch.cat([torch.stack([rest[:, 0], centre], 1), torch.stack([centre, rest[:, 1]], 1)])
    return _finest(found, 8 * SMALL * radius)


def _finest(found: list[tuple[float, float]], distance: float) -> list[float]:
    """The smallest panel of each cluster."""
    clusters: list[list[tuple[float, float]]] = []
    for point in sorted(found):
        if clusters and point[0] - clusters[-1][-1][0] <= distance:
            clusters[-1].append(point)
        else:
            clusters.append([point])
    if len(clusters) > MOST:
        raise _too_many()
    centres = [min(cluster, key=lambda point: point[1]) for cluster in clusters]
    return [0.0 if abs(centre) <= 4 * half else centre for centre, half in centres]


def outline(phi, radius: float, device: torch.device) -> list[float] | None:  # type: ignore[no-untyped-def]
    """Points in (-radius, radius) between which polynomials follow `phi`, at whatever scale it varies; 0 is one.

    Straight pieces, as most activations have far out, need no points however long they are. None where more than
    BENDS would be needed: phi oscillates, or has kinks away from 0.
    """
    nodes = torch.cos(torch.arange(POINTS, dtype=torch.float64, device=device) * math.pi / (POINTS - 1))
    transform = torch.linalg.inv(torch.cos(torch.arange(POINTS, device=device) * torch.acos(nodes)[:, None]))
    # Panels that halve towards 0, so that what is narrow there is not stepped over.
    halves = math.ceil(math.log2(max(radius, 1.0) / NEAR))
    far = radius * 0.5 ** torch.arange(halves + 1, dtype=torch.float64, device=device).flip(0)
    ends = torch.cat([-far.flip(0), far.new_zeros(1), far])
    panels = torch.stack([ends[:-1], ends[1:]], 1)
    largest = float(phi(ends.clone()).detach().abs().max())
    done: list[tuple[float, float, bool]] = []
    while len(panels):
        middle, half = panels.mean(1, keepdim=True), (panels[:, 1:] - panels[:, :1]) / 2
        u = middle + half * nodes
        values = phi(u.flatten().clone()).detach().reshape(u.shape).double()
        size = values.abs().amax(1).clamp_min(FLOOR * largest)
        coefficients = (values @ transform.T).abs()
        tail, bent = coefficients[:, -4:].amax(1), coefficients[:, 2:].amax(1)
        smooth = (tail <= FOLLOWED * size) | (half[:, 0] <= SMALLEST * radius)
        straight = bent <= STRAIGHT * size
        kept = smooth.nonzero()[:, 0].tolist()
        done += [(*panels[i].tolist(), bool(straight[i])) for i in kept]
        rest = panels[~smooth]
        if len(rest) > 2 * BENDS or len(done) > 20 * BENDS:
            return None
        centre = rest[:, 0] + SPLIT * (rest[:, 1] - rest[:, 0])
        panels = torch.cat([torch.stack([rest[:, 0], centre], 1), torch.stack([centre, rest[:, 1]], 1)])
    done.sort()
    inner = [low for (_, _, before), (low, _, after) in pairwise(done) if low == 0 or not (before and after)]
    return inner if len(inner) <= BENDS else None


def _too_many() -> NoInfiniteWidthLimit:
    return NoInfiniteWidthLimit(
        f"the activation is not smooth between a few kinks or jumps (at most {MOST}), so quadrature cannot follow it"
    )


@functools.cache
def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre on [-1, 1]."""
    return np.polynomial.legendre.leggauss(count)


def panels(edges: Tensor, count: int, radius: float, start: float = -1.0) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights [..., panels * count] on [start * radius, radius], split at edges [..., e]."""
    inner = edges.clamp(start * radius, radius).sort(-1).values
    ends = inner.new_full((*inner.shape[:-1], 1), radius)
    corners = torch.cat([start * ends, inner, ends], -1)
    middle, half = (corners[..., 1:] + corners[..., :-1]) / 2, (corners[..., 1:] - corners[..., :-1]) / 2
    x, w = (torch.as_tensor(a, dtype=edges.dtype, device=edges.device) for a in legendre(count))
    nodes = middle[..., None] + half[..., None] * x
    weights = half[..., None] * w
    return nodes.flatten(-2), weights.flatten(-2)


def outer_edges(points: Tensor, cosine: float, sine: float) -> Tensor:
    """Where the outer integrand, E[phi(v) | u] phi(u), is not smooth or changes fast; all in deviations of u."""
    edges = [points]
    width = sine / max(abs(cosine), 1e-3)
    if width < WIDE:
        edges += [points / cosine + step * width for step in RING]
    return torch.cat(edges)
