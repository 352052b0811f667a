"""Activations given by Hermite coefficients, whose kernels are power series in the cosine.

For h_k = He_k / sqrt(k!) and standard Gaussian (u, v) of correlation c, E[h_j(u) h_k(v)] = delta_jk c^k and
h_k' = sqrt(k) h_{k-1}. So phi = sum_k b_k h_k has, between inputs on a sphere,

    NNGP(c) = sum_k b_k^2 c^k,    NTK(c) = sum_k (1 + k) b_k^2 c^k

(Simon, Anand & DeWeese 2022), and any kernel whose Taylor coefficients a_k are non-negative is realised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.checks import check_choice
from models.limits import Kernels, NoInfiniteWidthLimit, rule

KINDS = ("ntk", "nngp")
TINY = 1e-30  # least standard deviation: a smaller one is taken as this
ROUNDING = 1e-12  # a negative coefficient of this size, relative to K(1), is taken as 0
HIGHEST = 100  # order of a coefficient: the work grows as its square
RADII = (1e-9, 1e9)  # far from where squares of the inputs are 0, below TINY, or infinite in single precision


class Hermite(nn.Module):
    """phi(z) = sum_k b_k h_k(z / radius) for z of any shape; h_k = He_k / sqrt(k!), orthonormal under N(0, 1).

    `coefficients`: b_0, b_1, ...; `radius`: the standard deviation of z that they are meant for.
    Raises ValueError for no coefficients, one that is not finite, or a radius that is not positive.
    """

    def __init__(self, coefficients: Sequence[float], radius: float = 1.0) -> None:
        super().__init__()
        self.coefficients = [float(b) for b in coefficients]
        if not self.coefficients or not all(math.isfinite(b) for b in self.coefficients):
            raise ValueError(f"coefficients must be one or more finite numbers, not {list(coefficients)}.")
        check_radius(radius)
        self.radius = float(radius)

    def forward(self, x: Tensor) -> Tensor:
        z = x / self.radius
        before, now = torch.zeros_like(z), torch.ones_like(z)
        total = self.coefficients[0] * now
        for k in range(1, len(self.coefficients)):
            before, now = now, (z * now - math.sqrt(k - 1.0) * before) / math.sqrt(k)
            total = total + self.coefficients[k] * now
        return total

    def breaks(self) -> list[float]:
        """Where phi is not smooth, in units of the radius: nowhere."""
        return []

    def extra_repr(self) -> str:
        return f"{[round(b, 4) for b in self.coefficients]}, radius={self.radius:g}"


def hermite_activation(coefficients: Sequence[float], kind: str = "ntk", radius: float = 1.0) -> Hermite:
    """The activation whose kernel of this kind is sum_k a_k c^k, for inputs of |x|^2 = radius^2 d and unit weights.

    Signs of b_k = +- sqrt(a_k) (NNGP) or +- sqrt(a_k / (1 + k)) (NTK) are those of sqrt(2) sin(z + pi / 4),
    + + - - + + ..., which keep phi bounded, and its finite-width noise small, where all plus grows as exp(z).
    Raises ValueError for a negative coefficient, naming its order: no network has such a kernel (Schoenberg 1942).
    """
    check_choice("kind", kind, KINDS)
    a = check_coefficients(coefficients)
    signs = (1, 1, -1, -1)
    weights = [a_k / (1 + k) if kind == "ntk" else a_k for k, a_k in enumerate(a)]
    return Hermite([signs[k % 4] * math.sqrt(w) for k, w in enumerate(weights)], radius)


def check_coefficients(coefficients: Sequence[float]) -> list[float]:
    """The Taylor coefficients as floats, rounding below 0 removed; ValueError for any that no network realises."""
    a = [float(a_k) for a_k in coefficients]
    if not a or not all(math.isfinite(a_k) for a_k in a) or not any(a):
        raise ValueError(f"target must be a list of finite Taylor coefficients, not all 0, not {a}.")
    if len(a) > HIGHEST + 1:
        raise ValueError(f"target must be Taylor coefficients of order {HIGHEST} at most, not {len(a) - 1}.")
    floor = -ROUNDING * sum(abs(a_k) for a_k in a)
    for order, a_k in enumerate(a):
        if a_k < floor:
            raise ValueError(
                f"target has the negative Taylor coefficient {a_k:.3g} at order {order}: a kernel that is positive "
                "semi-definite on spheres of every dimension has none, so no wide network realises it."
            )
    return [max(a_k, 0.0) for a_k in a]


def check_radius(radius: float) -> None:
    low, high = RADII
    if not isinstance(radius, int | float) or isinstance(radius, bool) or not low <= radius <= high:
        raise ValueError(f"radius must be a positive number from {low:g} to {high:g}, not {radius!r}.")


@rule(Hermite, role="activation")
def hermite_rule(module: Hermite, k: Kernels) -> Kernels:
    """Exact for any variances: z -> phi(s z) has Hermite coefficients that are polynomials in s."""
    s1, s2, correlation = standard(k)
    b1, b2 = (scaled_coefficients(module.coefficients, s / module.radius) for s in (s1, s2))
    nngp, slope = torch.zeros_like(correlation), torch.zeros_like(correlation)
    for order in range(len(b1) - 1, -1, -1):
        product = b1[order] * b2[order]
        nngp = nngp * correlation + product
        if order:
            slope = slope * correlation + order * product
    slope = slope / (s1 * s2)  # d/dz phi = d/dzeta phi(s zeta) / s
    return replace(k, nngp=nngp.to(k.nngp), ntk=slope.to(k.ntk) * k.ntk, gaussian=False)


def standard(k: Kernels) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviations s1, s2 (broadcastable) and correlations in float64; refuses what is not Gaussian."""
    if not k.gaussian:
        raise NoInfiniteWidthLimit("an activation must follow a layer with random weights, not another activation")
    q1, q2 = (k.nngp, k.nngp) if k.diagonal else (k.q1, k.q2)
    s1, s2 = (q.double().clamp_min(0).sqrt().clamp_min(TINY) for q in (q1, q2))
    if k.diagonal:
        return s1, s2, torch.ones_like(s1)
    return s1, s2, (k.nngp.double() / (s1 * s2)).clamp(-1, 1)


def scaled_coefficients(b: Sequence[float], s: Tensor) -> list[Tensor]:
    """Hermite coefficients of zeta -> phi(s zeta), each with the shape of s.

    He_n(s zeta) = sum_j n! / (2^j j! (n - 2j)!) s^(n - 2j) (s^2 - 1)^j He_{n-2j}(zeta).
    """
    excess = (s - 1) * (s + 1)
    found = []
    for k in range(len(b)):
        total = torch.zeros_like(s)
        for j in range((len(b) - 1 - k) // 2, -1, -1):  # Horner in s^2 - 1
            n = k + 2 * j
            ratio = math.exp((math.lgamma(n + 1) - math.lgamma(k + 1)) / 2 - j * math.log(2) - math.lgamma(j + 1))
            total = total * excess + b[n] * ratio
        found.append(total * s**k)
    return found
