"""Activations made of error functions, bounded but for a line, and their exact kernels.

phi(z) = sum_j weight_j erf((slope_j z + shift_j) / sqrt(2)) + line z + offset. The kernels of deep networks with erf or
tanh are smooth at c = 1 but have long Taylor series: neither kinks nor short polynomials follow them, and two units do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from models.design.hermite import check_radius, standard
from models.design.normal import above, density, truncated
from models.limits import Kernels, rule

STEEPEST = 4.0  # slopes stay below: the certificate's quadrature has 12 nodes a standard deviation
MOST = 4  # units tried
STARTS = 6  # random starts of each number of units
STEPS = 40  # evaluations of one fit, times the number of its parameters
ANGLES = 80  # Gauss points of the fit between 0 and pi
FINE = 2001  # angles at which the largest error is read off
CORRELATION = 1 - 1e-15


class ErfUnits(nn.Module):
    """phi(z) = sum_j weights[j] erf((slopes[j] z / radius + shifts[j]) / sqrt(2)) + line z / radius + offset.

    Raises ValueError for lists of unequal length, numbers that are not finite, or a radius that is not positive.
    """

    def __init__(
        self,
        weights: Sequence[float],
        slopes: Sequence[float],
        shifts: Sequence[float],
        line: float,
        offset: float,
        radius: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights, self.slopes, self.shifts = ([float(t) for t in some] for some in (weights, slopes, shifts))
        self.line, self.offset = float(line), float(offset)
        if not self.weights or not len(self.weights) == len(self.slopes) == len(self.shifts):
            raise ValueError("weights, slopes and shifts must be lists of one length, at least 1.")
        if not all(math.isfinite(t) for t in [*self.weights, *self.slopes, *self.shifts, self.line, self.offset]):
            raise ValueError("weights, slopes, shifts, line and offset must be finite numbers.")
        check_radius(radius)
        self.radius = float(radius)

    def forward(self, x: Tensor) -> Tensor:
        z = x / self.radius
        total = self.line * z + self.offset
        for j in range(len(self.weights)):
            total = total + self.weights[j] * torch.erf((self.slopes[j] * z + self.shifts[j]) / math.sqrt(2.0))
        return total

    def breaks(self) -> list[float]:
        """Where phi is not smooth, in units of the radius: nowhere."""
        return []

    def extra_repr(self) -> str:
        units = zip(self.weights, self.slopes, self.shifts, strict=True)
        terms = " ".join(f"{a:+.4g} erf(({w:.4g} z {b:+.4g}) / sqrt 2)" for a, w, b in units)
        return f"{terms} {self.line:+.4g} z {self.offset:+.4g}, radius={self.radius:g}"


class _Expectations(NamedTuple):
    """Of an activation of two Gaussians: products of its values, and of its derivatives."""

    values: Tensor
    slopes: Tensor


def _expectations(
    weights: Sequence[Tensor], slopes: Sequence[Tensor], shifts: Sequence[Tensor], line: Tensor, offset: Tensor,
    s1: Tensor, s2: Tensor, rho: Tensor,
) -> _Expectations:  # fmt: skip
    """E phi(u) phi(v) and E phi'(u) phi'(v) for standard deviations s1, s2 and correlation rho, and radius 1.

    erf(t / sqrt 2) = 2 P(x < t) - 1, so that products of units are orthant probabilities (Owen's T), and those of their
    derivatives bivariate densities: d/dk E f(u) g(v) = E f'(u) g'(v) for the covariance k (Price 1958).
    """
    covariance = s1 * s2 * rho
    values, products = line**2 * covariance + offset**2, line**2 + torch.zeros_like(rho)
    for a, w, b in zip(weights, slopes, shifts, strict=True):
        for s in (s1, s2):
            norm = (1 + (w * s) ** 2).sqrt()
            mean, slope = 1 - 2 * above(b / norm), 2 * w * density(b / norm) / norm
            values = values + a * (offset * mean + line * covariance * slope)
            products = products + a * line * slope
    for a_i, w_i, b_i in zip(weights, slopes, shifts, strict=True):
        norm_i = (1 + (w_i * s1) ** 2).sqrt()
        for a_j, w_j, b_j in zip(weights, slopes, shifts, strict=True):
            norm_j = (1 + (w_j * s2) ** 2).sqrt()
            steep = w_i * w_j / (norm_i * norm_j)
            angle = torch.arccos((steep * covariance).clamp(-CORRELATION, CORRELATION))
            h, k = -b_i / norm_i, -b_j / norm_j
            found = truncated(h + torch.zeros_like(angle), k + torch.zeros_like(angle), angle)
            values = values + a_i * a_j * (4 * found.both - 2 * above(h) - 2 * above(k) + 1)
            products = products + a_i * a_j * 4 * steep * found.density / torch.sin(angle)
    return _Expectations(values, products)


@rule(ErfUnits, role="activation")
def erf_units_rule(module: ErfUnits, k: Kernels) -> Kernels:
    """Exact for any variances."""
    s1, s2, rho = standard(k)

    weights, slopes, shifts, (line, offset) = (
        [rho.new_tensor(t) for t in numbers]
        for numbers in (module.weights, module.slopes, module.shifts, (module.line, module.offset))
    )
    found = _expectations(weights, slopes, shifts, line, offset, s1 / module.radius, s2 / module.radius, rho)
    products = found.slopes / module.radius**2
    return replace(k, nngp=found.values.to(k.nngp), ntk=products.to(k.ntk) * k.ntk, gaussian=False)


def fit_erf_units(
    target: Callable[[Tensor], Tensor], kind: str, good: float, units: int | None = None, radius: float = 1.0
) -> tuple[ErfUnits, float]:
    """The activation whose kernel of this kind is nearest to ``target`` (cosines [N] -> [N]), and its largest error.

    Least squares over Gauss points in the angle from random starts, up to the first within ``good`` K(1); units are
    added until there is one (``units=None``, at most MOST). Deterministic.
    """
    nodes, weights = np.polynomial.legendre.leggauss(ANGLES)
    theta = torch.from_numpy(np.concatenate([[0.0], (nodes + 1) * (math.pi / 2), [math.pi]]))
    roots = np.sqrt(np.concatenate([[0.2], weights, [0.1]]))
    fine = torch.linspace(0, math.pi, FINE, dtype=torch.float64)
    scale = float(target(torch.ones(1, dtype=torch.float64)))
    wanted, exact = (target(torch.cos(t)) / scale for t in (theta, fine))
    generator = np.random.default_rng(0)
    best: tuple[float, np.ndarray] = (math.inf, np.empty(0))
    for count in range(1, MOST + 1) if units is None else (units,):
        for _ in range(STARTS):
            start = np.concatenate([generator.normal(size=3 * count) * 0.7, [0.2, 0.05]])
            start[:count] /= math.sqrt(max(float(_on_sphere(start, theta[:1], kind)), 1e-3))
            found = least_squares(
                lambda p: roots * (_on_sphere(p, theta, kind) - wanted).numpy(), start, method="lm",
                max_nfev=STEPS * len(start),
            )  # fmt: skip
            error = float((_on_sphere(found.x, fine, kind) - exact).abs().max())
            best = min(best, (error, found.x), key=lambda pair: pair[0])
            if best[0] <= good:
                break
        if best[0] <= good:
            break
    error, point = best
    count = (len(point) - 2) // 3
    root = math.sqrt(scale)
    made = ErfUnits(
        (root * point[:count]).tolist(), _steepness(point[count : 2 * count]).tolist(), point[2 * count : -2].tolist(),
        root * point[-2], root * point[-1], radius,
    )  # fmt: skip
    return made, error


def _on_sphere(point: np.ndarray, theta: Tensor, kind: str) -> Tensor:
    """The kernel of weights, free slopes, shifts, line and offset at angles [N], for unit variances."""
    count = (len(point) - 2) // 3
    one, rho = torch.ones((), dtype=torch.float64), torch.cos(theta)
    free = point.copy()
    free[count : 2 * count] = _steepness(point[count : 2 * count])
    numbers = list(torch.from_numpy(free))
    found = _expectations(numbers[:count], numbers[count : 2 * count], numbers[2 * count : -2], numbers[-2],
                          numbers[-1], one, one, rho)  # fmt: skip
    return found.values + rho * found.slopes if kind == "ntk" else found.values


def _steepness(free: np.ndarray) -> np.ndarray:
    """Slopes between 0 and STEEPEST; a free parameter of 0 is 1."""
    return STEEPEST / (1 + (STEEPEST - 1) * np.exp(-np.clip(free, -50, 50)))
