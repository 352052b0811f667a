"""What a design promises: error of the kernel, noise at finite width, sensitivity to inputs off the sphere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.checks import check_count

REACH = 14  # standard deviations: eighth powers of a sextic, in the kurtosis, peak at 7 and end below 13
NODES = 12  # of Gauss-Legendre on each panel
RING = torch.arange(-8.0, 9.0, 2.0, dtype=torch.float64)  # deviations of v around a break: edges of panels outside
ANGLES = 33  # at which the variance is tabulated; between them linear interpolation is within .4 % of the largest
SHARE = 0.1  # of the variance that neurons too rare to be met may carry
HEAVY = 4096  # a trusted width beyond which a design is called heavy-tailed
ROUNDING = 1e-5  # of cosines of inputs in single precision
LEAST = 1e-9  # tolerance
SPREAD = 0.02  # of the norms, relative, beyond which data count as off the sphere


class Norms(NamedTuple):
    """How far inputs X are from the sphere, and what it does to the kernel."""

    spread: float  # standard deviation of |x| over its mean
    offset: float  # mean of |x| over radius sqrt(d), minus 1
    error: float  # largest |K(X, X) - K on the sphere|, relative to K(1)


@dataclass(frozen=True)
class Certificate:
    """A design's promises; all errors are relative to the target's K(1).

    error: largest |K - target| over c in [-1, 1], and where: the realised kernel is exact, the maximum is read off
        2001 angles, and 202 more within .001 of 0 and pi, where kernels of deep networks have spikes.
    tail: sum of the target's Taylor coefficients left out, over K(1), which is then exactly the error; None for
        designs that truncate nothing.
    kurtosis: of one neuron's share of K(1).
        Of polynomials with weight on orders above 27 the quadrature misses part of both the variance and this: what
        it finds, 10^24 and more, says no more than that.
    trusted_width: neurons whose pre-activation is rarer than one in this many carry a tenth of the variance of K(1).
        A narrower network seldom has one, so it scatters less than the certificate says, and now and then far more.

    The root mean square error over a kernel's entries scatters around its prediction from one network to the next: for
    the design of relu:4, 24 inputs and width 1,024 by 12 % (standard deviation, of 800 networks), over 8 networks 4 %.
    """

    kind: str
    at_one: float
    error: float
    worst: float
    tail: float | None
    angles: Tensor  # [A], from 0 to pi
    variances: Tensor  # [A]: V, where a width-m network's entries have variance V / m; in units of K(1)^2
    kurtosis: float
    trusted_width: int
    norms: Callable[[Tensor], Norms]

    def standard_deviation(self, width: int, c: Tensor | float = 1.0) -> Tensor:
        """Of entries of the kernel of one random network with `width` hidden units, at cosines c, over K(1)."""
        check_count("width", width)
        cosines = torch.as_tensor(c, dtype=torch.float64)
        if not bool((cosines.abs() <= 1 + ROUNDING).all()):
            raise ValueError("c must be cosines, from -1 to 1.")
        cosines = cosines.clamp(-1, 1)
        position = torch.arccos(cosines) * ((len(self.angles) - 1) / math.pi)
        low = position.floor().clamp(0, len(self.angles) - 2)
        share = position - low
        table = self.variances.to(cosines.device)
        start, end = table[low.long()], table[low.long() + 1]
        return ((1 - share) * start + share * end).div(width).sqrt()

    @property
    def heavy_tailed(self) -> bool:
        """Whether rare neurons carry the variance, so that networks of the usual widths seem less noisy than it."""
        return self.trusted_width > HEAVY

    def width_for(self, tolerance: float) -> int:
        """The least width whose kernel entries have a standard deviation of at most `tolerance` K(1) at every c."""
        if not isinstance(tolerance, int | float) or not LEAST <= tolerance < math.inf:
            raise ValueError(f"tolerance must be positive: a number of at least {LEAST:g}, not {tolerance!r}.")
        return max(1, math.ceil(float(self.variances.max()) / tolerance**2 * (1 - 1e-12)))

    def __str__(self) -> str:
        lines = [
            f"kernel                 {self.kind}, K(1) = {self.at_one:.4g}",
            f"largest error          {self.error:.2e} K(1), at c = {self.worst:.3f}",
        ]
        if self.tail is not None:
            lines.append(f"truncation tail        {self.tail:.2e} K(1)")
        for width in (256, 1024, 4096):
            at_one, largest = self.standard_deviation(width), (self.variances.max() / width).sqrt()
            lines.append(
                f"std at width {width:<10}{float(at_one):.2e} K(1) at c = 1, at most {float(largest):.2e} K(1) at any c"
            )
        lines.append(f"kurtosis of a neuron   {self.kurtosis:.3g}")
        if self.heavy_tailed:
            lines.append(f"warning                heavy tails: trust these stds from width {self.trusted_width} on")
        return "\n".join(lines)


def variances(phi: nn.Module, breaks: list[float], radius: float, kind: str, angles: Tensor) -> Tensor:
    """V [A] of one neuron's share of the kernel, at these angles between the inputs.

    That share is P + c a^2 D, P = phi(u) phi(v), D = phi'(u) phi'(v), read-out weight a ~ N(0, 1), so that
    V = E P^2 + 2 E P D + 3 E D^2 - (E P + E D)^2, with D taken times c; NNGP: D = 0. Two-dimensional quadrature, split
    at the `breaks`, all in units of `radius`.
    """
    p, d, pp, pd, dd = torch.stack([_second_moments(phi, breaks, radius, float(t)) for t in angles]).unbind(1)
    c = torch.cos(angles) if kind == "ntk" else torch.zeros_like(angles)
    return (pp + 2 * c * pd + 3 * c * c * dd - (p + c * d) ** 2).clamp_min(0)


def _second_moments(phi: nn.Module, breaks: list[float], radius: float, theta: float) -> Tensor:
    """E P, E D, E P^2, E P D, E D^2 at this angle: u outside, v = c u + sin(theta) w inside."""
    c, sin = math.cos(theta), math.sin(theta)
    points = torch.tensor(breaks, dtype=torch.float64)
    # Where v passes a break: between nearly equal or opposite inputs, what is inside changes within sin of it.
    passing = (points[:, None] + sin * RING) / math.copysign(max(abs(c), 1e-3), c)
    u, weight_u = _panels(torch.cat([points, passing.flatten()])[None])
    u, weight_u = u[0], weight_u[0]
    at_u, slope_u = _with_slope(phi, u, radius)
    if sin < 1e-9:
        at_v, slope_v = _with_slope(phi, c * u, radius)
        inner = [at_v, slope_v, at_v**2, at_v * slope_v, slope_v**2]
    else:
        edges = (points - c * u[:, None]) / sin
        w, weight_w = _panels(edges)
        at_v, slope_v = _with_slope(phi, c * u[:, None] + sin * w, radius)
        inner = [(f * weight_w).sum(1) for f in (at_v, slope_v, at_v**2, at_v * slope_v, slope_v**2)]
    outer = [at_u, slope_u, at_u**2, at_u * slope_u, slope_u**2]
    return torch.stack([(f * g * weight_u).sum() for f, g in zip(outer, inner, strict=True)])


def tails(phi: nn.Module, breaks: list[float], radius: float, kind: str) -> tuple[float, int]:
    """Kurtosis and trusted width (see Certificate) of one neuron's share of K(1), Y = P + a^2 D at c = 1.

    E a^2, a^4, a^6, a^8 = 1, 3, 15, 105.
    """
    u, weight = (t[0] for t in _panels(torch.tensor([breaks], dtype=torch.float64)))
    at, slope = _with_slope(phi, u, radius)
    p, d = at**2, slope**2 if kind == "ntk" else torch.zeros_like(u)
    p = p - (weight * (p + d)).sum()
    square = p**2 + 2 * p * d + 3 * d**2
    second = (weight * square).sum()
    if not second > 0:
        return 0.0, 1
    fourth = (weight * (p**4 + 4 * p**3 * d + 18 * p**2 * d**2 + 60 * p * d**3 + 105 * d**4)).sum()
    order = square.argsort(descending=True)
    carried = torch.cumsum((weight * square)[order], 0) / second
    probability = torch.cumsum(weight[order], 0)[int((carried < SHARE).sum())]
    return float(fourth / second**2), math.ceil(1 / float(probability))


def _panels(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and Gaussian weights [R, N] of composite Gauss-Legendre rules, split at integers and at edges [R, E]."""
    whole = torch.arange(-REACH, REACH + 1, dtype=torch.float64).expand(len(edges), -1)
    bounds = torch.cat([whole, edges.clamp(-REACH, REACH)], 1).sort(1).values
    x, weight = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(NODES))
    low, high = bounds[:, :-1, None], bounds[:, 1:, None]
    nodes = (low + (high - low) * ((x + 1) / 2)).flatten(1)
    weights = ((high - low) / 2 * weight).flatten(1)
    return nodes, weights * torch.exp(nodes**2 / -2) / math.sqrt(2 * math.pi)


def _with_slope(phi: nn.Module, z: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """phi(radius z) and its derivative by z."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = phi(radius * z)
        slope = torch.autograd.grad(value.sum(), z)[0] if value.requires_grad else torch.zeros_like(z)
    return value.detach(), slope
