"""Continuous piecewise-linear activations and their exact kernels.

phi(z) = sum_j bend_j relu(z - knot_j) + slope z + offset. Kernels with a square-root singularity at c = 1, as those
of every ReLU network, have Taylor coefficients ~ k^-3/2 that no polynomial follows; a kink has just this tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.design.hermite import check_radius, standard
from models.design.normal import above, density, truncated
from models.limits import Kernels, rule


class PiecewiseLinear(nn.Module):
    """phi(z) = sum_j bends[j] relu(z / radius - knots[j]) + slope z / radius + offset, for z of any shape.

    Raises ValueError for lists of unequal length, numbers that are not finite, or a radius that is not positive.
    """

    def __init__(
        self, knots: Sequence[float], bends: Sequence[float], slope: float, offset: float, radius: float = 1.0
    ) -> None:
        super().__init__()
        self.knots = [float(t) for t in knots]
        self.bends = [float(t) for t in bends]
        self.slope, self.offset = float(slope), float(offset)
        if not self.knots or len(self.knots) != len(self.bends):
            raise ValueError(
                f"knots and bends must be lists of one length, at least 1, not {len(knots)}, {len(bends)}."
            )
        if not all(math.isfinite(t) for t in [*self.knots, *self.bends, self.slope, self.offset]):
            raise ValueError("knots, bends, slope and offset must be finite numbers.")
        check_radius(radius)
        self.radius = float(radius)

    def forward(self, x: Tensor) -> Tensor:
        z = x / self.radius
        total = self.slope * z + self.offset
        for j in range(len(self.knots)):
            total = total + self.bends[j] * torch.relu(z - self.knots[j])
        return total

    def breaks(self) -> list[float]:
        """Where phi is not smooth, in units of the radius: at the knots."""
        return list(self.knots)

    def extra_repr(self) -> str:
        terms = " ".join(f"{bend:+.4g} relu(z {-knot:+.4g})" for bend, knot in zip(self.bends, self.knots, strict=True))
        return f"{terms} {self.slope:+.4g} z {self.offset:+.4g}, radius={self.radius:g}"


class Moments(NamedTuple):
    """Expectations over pairs (i, j) of knots, leading axes [J, J], for one correlation each."""

    relu_relu: Tensor  # E[relu(u - h_i) relu(v - k_j)]
    step_relu: Tensor  # E[1(u > h_i) relu(v - k_j)]
    step_step: Tensor
    slope: Tensor  # d step_step / d h_i


def moments(h: Tensor, k: Tensor, theta: Tensor) -> Moments:
    """For thresholds h, k, in units of the standard deviations, and angles theta (arccos of the correlation)."""
    t = truncated(h, k, theta)
    rho, sin = torch.cos(theta), torch.sin(theta)
    at_h, at_k = density(h), density(k)
    step_relu = at_k * t.v_given + rho * at_h * t.u_given - k * t.both
    relu_relu = (rho + h * k) * t.both - k * at_h * t.u_given - h * at_k * t.v_given + sin * t.density
    return Moments(relu_relu, step_relu, t.both, -at_h * t.u_given)


@rule(PiecewiseLinear, role="activation")
def piecewise_rule(module: PiecewiseLinear, k: Kernels) -> Kernels:
    """Exact for any variances: bivariate orthant probabilities by Owen's T, one pair of knots at a time."""
    s1, s2, rho = standard(k)
    theta = k.angle()[0].double()
    slope, r = module.slope / module.radius, module.radius
    knots, bends = [t * r for t in module.knots], [t / r for t in module.bends]
    product = s1 * s2
    nngp = slope**2 * product * rho + module.offset**2
    slopes = torch.full_like(rho, slope**2)
    for bend, knot in zip(bends, knots, strict=True):
        for s in (s1, s2):
            h = knot / s
            share = above(h)
            with_line, mean = slope * product * rho * share, s * (density(h) - h * share)
            nngp = nngp + bend * (with_line + module.offset * mean)
            slopes = slopes + bend * slope * share
    for bend_i, knot_i in zip(bends, knots, strict=True):
        for bend_j, knot_j in zip(bends, knots, strict=True):
            m = moments(knot_i / s1, knot_j / s2, theta)
            nngp = nngp + bend_i * bend_j * product * m.relu_relu
            slopes = slopes + bend_i * bend_j * m.step_step
    return replace(k, nngp=nngp.to(k.nngp), ntk=slopes.to(k.ntk) * k.ntk, gaussian=False)
