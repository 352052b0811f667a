"""Dual maps of any activation, by deterministic quadrature.

For (u, v) Gaussian of standard deviations s1, s2 and angle theta (cos theta = correlation), the maps
D(s1, s2, theta) = E[phi(u) phi(v)] and E[phi'(u) phi'(v)] are analytic in all three for an activation that is smooth
away from 0; in the correlation they would have square-root singularities at +-1. So they are tabulated once for the
range of standard deviations that occurs, as Chebyshev series, and evaluated by Clenshaw's recurrence.
The values come from polar coordinates, u = s1 r cos(a), v = s2 r cos(a - theta): kinks at 0 are then rays, and
Gauss-Legendre on the four arcs between them, and on the radius, converges geometrically. Nodes are
doubled until two numbers of them agree to TOLERANCE of the largest value, and degrees raised until the last
coefficients fall below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from models.limits.kinks import kinks, legendre, outer_edges, outline, panels
from models.limits.state import NoInfiniteWidthLimit

Phi = Callable[[Tensor], Tensor]

TOLERANCE = 1e-10  # relative to the largest value of a table
WORST = 1e-6  # refused beyond: the activation is not of the kind described above
RADIUS = 10.0  # exp(-RADIUS^2 / 2) = 2e-22
NODES = (24, 192)  # of one Gauss-Legendre rule: first try and last
ANGLES = (16, 24, 32, 48, 64, 96, 128)  # Chebyshev points to try
SPREADS = (8, 12, 16, 24, 32)
REST = 2  # times the last two coefficients: what a series leaves
PROBES = [0.03, 1.0, 3.0]  # angles at which nodes and degrees are tried
NESTED_RADIUS = 8.0  # exp(-RADIUS^2 / 2) = 1e-14
LARGEST = 1e5  # deviation
CHUNK = 2**17  # evaluations at a time: arrays of 1 MB, of which some twenty live at once
WORK = 24 * 8 * CHUNK  # bytes that quadrature takes, whatever the inputs


def with_slope(phi: Phi, u: Tensor) -> tuple[Tensor, Tensor]:
    """phi(u) and phi'(u), the latter as autograd sees it; ValueError if phi is not elementwise."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = phi(u.clone())  # an in-place phi may not write to a leaf
        if value.shape != u.shape:
            raise NoInfiniteWidthLimit("an elementwise activation must return the shape that it gets")
        slope = torch.autograd.grad(value.sum(), u)[0] if value.requires_grad else torch.zeros_like(u)
    return value.detach(), slope


@dataclass(frozen=True)
class DualTable:
    """Chebyshev coefficients of one activation's two dual maps; `error` is relative to each map's largest value."""

    spread: tuple[float, float]  # range of the standard deviations
    maps: tuple[Tensor, Tensor]  # [spreads, spreads, angles] for phi and phi'
    nodes: int
    error: float

    def __call__(self, s1: Tensor, s2: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """E[phi phi], E[phi' phi'] for standard deviations s1 [b, r], s2 [b, c] and angles theta [b, r, c]."""
        x = theta * (2 / math.pi) - 1
        value, slope = (_evaluate(c.to(theta), self._position(s1), self._position(s2), x) for c in self.maps)
        return value, slope

    def _position(self, s: Tensor) -> Tensor:
        low, high = self.spread
        return torch.zeros_like(s) if high == low else ((2 * s - low - high) / (high - low)).clamp(-1, 1)


def single_maps(phi: Phi, s: Tensor, squared: bool = True) -> tuple[tuple[Tensor, Tensor], float]:
    """E[phi(s z)^2] and E[phi'(s z)^2], or without the squares, for deviations s [n] and normal z; and the error."""
    distinct, where = torch.unique(s.double(), return_inverse=True)
    maps, error = _by_panels(phi, distinct, squared, known_breaks(phi, float(distinct[-1]), s.device))
    if error > WORST and (points := bends(phi, float(distinct[-1]), s.device)) is not None:
        maps, error = _by_panels(phi, distinct, squared, points)
    converged(error)
    maps = maps.to(s)
    return (maps[0][where], maps[1][where]), error


def _by_panels(phi: Phi, s: Tensor, squared: bool, breaks: list[float]) -> tuple[Tensor, float]:
    """[2, n] of `single_maps` for deviations s [n] in order, by nodes between `breaks`; and the error."""
    ends = s[[0, len(s) // 2, -1]]
    count, error = NODES[0], math.inf
    found = _single(phi, ends, count, breaks, squared)
    while error > TOLERANCE and count < NODES[1]:
        count *= 2
        finer = _single(phi, ends, count, breaks, squared)
        size = None if squared else _single(phi, ends, count, breaks, True).sqrt()  # a mean may be 0
        error, found = _difference(found, finer, size), finer
    per_chunk = max(CHUNK // (2 * count * (1 + len(breaks))), 1)
    return torch.cat([_single(phi, part, count, breaks, squared) for part in s.split(per_chunk)], 1), error


def dual_table(phi: Phi, low: float, high: float, device: torch.device, same: float = 1e-14) -> DualTable:
    """Tabulate both maps for standard deviations in [low, high], in float64 on `device`.

    A range narrower than `same` * high (rounding) is taken as one value.
    """
    if high - low <= same * high:
        low = high = (low + high) / 2
    converged(_along(phi, low, high, device))
    values = _values(phi, low, high, device)
    nodes, error = _enough_nodes(values, low, high, device)
    converged(error)
    angles, spreads = _enough_points(values, low, high, nodes, device)
    s = _stretch(_chebyshev_points(spreads), low, high).to(device)
    theta = _stretch(_chebyshev_points(angles), 0, math.pi)
    coefficients = _coefficients(values(s, theta.tolist(), nodes), (1, 2, 3))
    tail_angle, tail_spread = _tails(coefficients)
    maps = _trim(coefficients[0]), _trim(coefficients[1])
    table = DualTable((low, high), maps, nodes, error + REST * (tail_angle + tail_spread))
    return replace(table, error=converged(max(table.error, _unseen(table, phi, device))))


def _along(phi: Phi, low: float, high: float, device: torch.device) -> float:
    """What the longest series in the deviation leaves of E[phi(s z) phi(+-high z)]: no table leaves less.

    Two lines of the table, at angles 0 and pi: where it must fail, they tell at once.
    """
    if low == high or device.type == "meta":
        return 0.0
    s = _stretch(_chebyshev_points(SPREADS[-1]), low, high).to(device)
    z, weight = panels(s.new_tensor(known_breaks(phi, high, device)) / high, NODES[1], RADIUS)
    weight = weight * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    ends = torch.stack([high * z, -high * z])
    pairs = zip(with_slope(phi, s[:, None] * z), with_slope(phi, ends), strict=True)
    lines = torch.stack([f @ (g * weight).T for f, g in pairs])
    return _tails(_coefficients(lines[:, :, None], (1,)))[1]


def _unseen(table: DualTable, phi: Phi, device: torch.device) -> float:
    """The table's error where two inputs agree: what changes between its points does not show in its coefficients."""
    low, high = table.spread
    if high == 0 or device.type == "meta":
        return 0.0
    ratio = low / high if low > 0 else 1e-6  # at 0 itself a jump is another matter
    s = high * ratio ** torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    found = torch.stack([t[0].diagonal() for t in table(s[None], s[None], s.new_zeros(1, 5, 5))])
    exact = _single(phi, s, NODES[1], known_breaks(phi, high, device), True)
    return _difference(found, exact)


Values = Callable[[Tensor, list[float], int], Tensor]
"""[2, S, S, T]: E[phi phi] and E[phi' phi'] at all pairs of standard deviations s [S] and T angles, by some nodes."""


def known_breaks(phi: Phi, high: float, device: torch.device) -> list[float]:
    """Kinks of phi within the range of inputs of deviation `high`; 0 always counts as one."""
    if high == 0 or device.type == "meta":
        return [0.0]
    return sorted({0.0, *kinks(phi, RADIUS * high, high, device)})


def bends(phi: Phi, high: float, device: torch.device) -> list[float] | None:
    """The outline of phi for inputs of deviations up to `high`; None where it has none of few points.

    Nor for deviations beyond LARGEST: there the roundings of an angle are no longer small to a bend of width 1.
    """
    return None if high > LARGEST else outline(phi, RADIUS * high, device)


def _values(phi: Phi, low: float, high: float, device: torch.device) -> Values:
    """Polar coordinates where the only kink is at 0, nested quadrature where there are others.

    Kinks elsewhere meet at angle 0 only for equal deviations, so the maps are no smooth function of all three, and
    there is a table for one deviation only (see models.limits.nested).
    """
    breaks = known_breaks(phi, high, device)
    if breaks == [0.0]:
        return lambda s, thetas, nodes: _dual_values(phi, s, thetas, nodes)
    return lambda s, thetas, nodes: _nested_values(phi, s, thetas, max(nodes // 2, 16), breaks)


def _nested_values(phi: Phi, s: Tensor, thetas: list[float], nodes: int, breaks: list[float]) -> Tensor:
    """Over u outside and v given u inside, both split at the kinks, and the outer one where these meet; s [1]."""
    points = torch.tensor(breaks, dtype=s.dtype, device=s.device) / s
    found = s.new_zeros(2, 1, 1, len(thetas))
    for t, theta in enumerate(thetas):
        cosine, sine = math.cos(theta), max(math.sin(theta), 1e-12)
        z, weight = panels(outer_edges(points, cosine, sine), nodes, NESTED_RADIUS)
        weight = weight * torch.exp(-z * z / 2) / (2 * math.pi)
        per_chunk = max(1, CHUNK // (nodes * (1 + len(breaks))))
        for part, weights in zip(z.split(per_chunk), weight.split(per_chunk), strict=True):
            inside, inner = panels((points - cosine * part[:, None]) / sine, nodes, NESTED_RADIUS)
            inner = inner * torch.exp(-inside * inside / 2)
            v = cosine * part[:, None] + sine * inside
            for which, (f, g) in enumerate(zip(with_slope(phi, s * part), with_slope(phi, s * v), strict=True)):
                found[which, 0, 0, t] += ((g * inner).sum(1) * f) @ weights
    return found


def _dual_values(phi: Phi, s: Tensor, thetas: list[float], nodes: int) -> Tensor:
    """[2, S, S, T]: E[phi phi] and E[phi' phi'] at all pairs of standard deviations s [S] and T angles."""
    r, weight_r = _legendre(nodes, 0.0, RADIUS, s)
    weight_r = weight_r * r * torch.exp(-r * r / 2) / (2 * math.pi)
    # v at a is u at theta - a: the same points in another order (the first three arcs together, the fourth alone).
    order = torch.arange(4 * nodes, device=s.device)
    order = torch.cat([order[: 3 * nodes].flip(0), order[3 * nodes :].flip(0)])
    values = []
    for theta in thetas:
        corners = [-math.pi / 2, theta - math.pi / 2, math.pi / 2, theta + math.pi / 2, 1.5 * math.pi]
        arcs = [_legendre(nodes, a, b, s) for a, b in pairwise(corners)]
        a, weight_a = torch.cat([arc[0] for arc in arcs]), torch.cat([arc[1] for arc in arcs])
        total = s.new_zeros(2, len(s), len(s))
        for part in range(0, nodes, max(1, CHUNK // (4 * nodes * len(s)))):
            cut = slice(part, part + max(1, CHUNK // (4 * nodes * len(s))))
            u = s[:, None, None] * r[cut, None] * torch.cos(a)
            weight = weight_r[cut, None] * weight_a
            for which, h in enumerate(with_slope(phi, u)):
                total[which] += (h * weight).flatten(1) @ h[..., order].flatten(1).T
        values.append(total)
    return torch.stack(values, -1)


def _enough_nodes(values: Values, low: float, high: float, device: torch.device) -> tuple[int, float]:
    """The number of nodes whose double changes nothing at the extreme standard deviations; and what it changes."""
    s = torch.tensor(sorted({low, high}), dtype=torch.float64, device=device)
    nodes, found = NODES[0], values(s, PROBES, NODES[0])
    while True:
        finer = values(s, PROBES, 2 * nodes)
        error = _difference(found, finer)
        if error <= TOLERANCE or 4 * nodes > NODES[1]:
            return (nodes if error <= TOLERANCE else 2 * nodes), error
        nodes, found = 2 * nodes, finer


def _enough_points(values: Values, low: float, high: float, nodes: int, device: torch.device) -> tuple[int, int]:
    """Chebyshev points that the angle needs at the extreme deviations, and the deviations at some angles."""
    s = torch.tensor(sorted({low, high}), dtype=torch.float64, device=device)
    for angles in ANGLES:
        theta = _stretch(_chebyshev_points(angles), 0, math.pi)
        if _tails(_coefficients(values(s, theta.tolist(), nodes), (3,)))[0] <= TOLERANCE:
            break
    if low == high:
        return angles, 1
    for spreads in SPREADS:
        s = _stretch(_chebyshev_points(spreads), low, high).to(device)
        if _tails(_coefficients(values(s, PROBES, nodes), (1, 2)))[1] <= TOLERANCE:
            break
    return angles, spreads


def _single(phi: Phi, s: Tensor, count: int, breaks: list[float], squared: bool) -> Tensor:
    """[2, n]: E[phi(s z)^2] and E[phi'(s z)^2], or without the squares, by `count` nodes between kinks."""
    points = torch.tensor(breaks, dtype=s.dtype, device=s.device)
    z, weight = panels(points / s[:, None].clamp_min(1e-150), count, RADIUS)
    weight = weight * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    both = with_slope(phi, s[:, None] * z)
    return torch.stack([((h * h if squared else h) * weight).sum(1) for h in both])


def _legendre(count: int, low: float, high: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on [low, high]."""
    x, weight = legendre(count)
    nodes = torch.as_tensor(x, dtype=like.dtype, device=like.device)
    weights = torch.as_tensor(weight, dtype=like.dtype, device=like.device)
    return (nodes + 1) * ((high - low) / 2) + low, weights * ((high - low) / 2)


def _chebyshev_points(count: int) -> Tensor:
    return torch.cos((torch.arange(count, dtype=torch.float64) + 0.5) * math.pi / count)


def _stretch(x: Tensor, low: float, high: float) -> Tensor:
    return (x + 1) * ((high - low) / 2) + low


def _coefficients(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Chebyshev coefficients along `axes` from values [2, S, S, T] at the Chebyshev points of these."""
    for axis in axes:
        count = values.shape[axis]
        k = torch.arange(count, dtype=torch.float64)
        transform = torch.cos(k[:, None] * (k + 0.5) * math.pi / count) * (2 / count)
        transform[0] /= 2
        values = torch.tensordot(values, transform.to(values), ([axis], [1])).movedim(-1, axis)
    return values


def _tails(coefficients: Tensor) -> tuple[float, float]:
    """The last two coefficients along the angle and along the standard deviations, relative to the largest value."""
    size = coefficients.abs() / _scale(coefficients)
    angle = size[..., -2:].sum(-1).amax().item()
    spread = size[:, -2:].sum(1).amax().item() if coefficients.shape[1] > 1 else 0.0
    return angle, spread


def _trim(coefficients: Tensor) -> Tensor:
    """Drop the angular degrees that are below rounding."""
    size = coefficients.abs().amax((0, 1))
    kept = int((size > 1e-3 * TOLERANCE * size.max()).nonzero().max()) + 1 if size.max() > 0 else 1
    return coefficients[..., :kept].contiguous()


def _scale(maps: Tensor) -> Tensor:
    """The largest value of each of the two maps; 1 for a map that is 0 (the slope of a step)."""
    largest = maps.flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (maps.ndim - 1))


def converged(error: float) -> float:
    if not error <= WORST:  # not a number counts too
        raise NoInfiniteWidthLimit(
            f"the quadrature reaches only a relative error of {error:.0e}, "
            "so the activation must be smooth between its kinks, on the scale of its inputs, and grow no faster than "
            "exp(|z|): scale the inputs to norms of the order of sqrt(d)"
        )
    return error


def _difference(coarse: Tensor, fine: Tensor, size: Tensor | None = None) -> float:
    return float(((coarse - fine) / _scale(fine if size is None else size)).abs().amax())


def _evaluate(coefficients: Tensor, y1: Tensor, y2: Tensor, x: Tensor) -> Tensor:
    """Clenshaw's recurrence over the angles x [b, r, c]; its coefficients are series in y1 [b, r] and y2 [b, c]."""
    spreads, _, angles = coefficients.shape
    left = torch.einsum("bri,ijm->mbrj", _chebyshev_values(y1, spreads), coefficients)
    right = _chebyshev_values(y2, spreads).transpose(1, 2)
    constants = coefficients[0, 0].tolist() if spreads == 1 else None
    x2 = 2 * x
    b1, b2 = torch.zeros_like(x), torch.zeros_like(x)
    for m in range(angles - 1, -1, -1):
        b2 = b2.neg_().add_(constants[m]) if constants is not None else torch.baddbmm(b2, left[m], right, beta=-1)
        b2.addcmul_(x2 if m > 0 else x, b1)
        b1, b2 = b2, b1
    return b1


def _chebyshev_values(y: Tensor, count: int) -> Tensor:
    """[..., count]: the first Chebyshev polynomials at y."""
    return torch.cos(torch.arange(count, dtype=y.dtype, device=y.device) * torch.acos(y)[..., None])
