"""Fit a piecewise-linear activation to a kernel: exact kernels, exact Jacobians, Levenberg-Marquardt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from models.design.certificate import variances
from models.design.normal import above, density
from models.design.piecewise import PiecewiseLinear, moments

GOOD = 0.005  # largest error, relative to K(1), at which no more knots are added
MOST = 8  # knots tried
ANGLES = 80  # Gauss points of the fit between 0 and pi
FINE = 2001  # angles at which the largest error is read off
LARGEST = 2.0  # knots stay within: rare bends, by the size that they need, make heavy-tailed activations
STARTS = 12  # random starts of the first fit
KEPT, TRIES = 3, 4  # fits that get one more knot, and places tried for it
POLISHED = 6  # fits of one number of knots that are reweighted
STEPS = 100  # evaluations of one fit
ROUNDS, ROUND = 6, 20  # reweightings towards the least largest error, and evaluations of each

Kernel = Callable[[Tensor], Tensor]


class Fit(NamedTuple):
    """A fitted activation of unit radius and its largest error, relative to K(1)."""

    activation: PiecewiseLinear
    error: float


def fit_piecewise(target: Kernel, kind: str, knots: int | None = None, radius: float = 1.0) -> Fit:
    """The piecewise-linear activation whose kernel of this kind is nearest to `target` (cosines [N] -> [N]).

    Random starts with two knots; then knots are added one at a time, at the best of some random places, until the
    largest error is at most GOOD K(1) (`knots=None`, at most MOST) or until there are `knots`. Reweighting turns each
    least-squares fit into one of nearly least largest error (Lawson 1961). Of fits within GOOD the one is taken whose
    finite networks have the least noise. Deterministic.
    """
    problem = _Problem(target, kind)
    generator = np.random.default_rng(0)
    count = 2 if knots is None else min(knots, 2)
    fits = [problem.fit(problem.start(count, generator)) for _ in range(STARTS)]
    best = problem.best(fits)
    while count < (MOST if knots is None else knots) and not (knots is None and best.error <= GOOD):
        count += 1
        kept = sorted(fits, key=lambda found: found.error)[:KEPT]
        fits = [problem.fit(problem.grown(f.point, generator)) for f in kept for _ in range(TRIES)]
        best = min(problem.best(fits), best, key=lambda found: max(found.error, GOOD))
    return Fit(problem.activation(best.point, radius), best.error)


class _Found(NamedTuple):
    point: np.ndarray
    error: float


class _Problem:
    """Least squares over Gauss points in the angle; points are parameters with knots = LARGEST tanh(. / LARGEST)."""

    def __init__(self, target: Kernel, kind: str) -> None:
        x, weights = np.polynomial.legendre.leggauss(ANGLES)
        self.theta = torch.from_numpy(np.concatenate([[0.0], (x + 1) * (math.pi / 2), [math.pi]]))
        self.roots = np.sqrt(np.concatenate([[0.2], weights, [0.1]]))  # of the weights; the ends, where errors peak
        self.fine = torch.linspace(0, math.pi, FINE, dtype=torch.float64)
        self.kind = kind
        values = target(torch.cos(torch.cat([self.theta, self.fine])))
        self.scale = float(values[0])
        self.values, self.fine_values = (values / self.scale).split([len(self.theta), FINE])
        self._last: tuple[bytes, np.ndarray, np.ndarray] | None = None

    def start(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Random knots, bends, slope and offset with the right K(1)."""
        point = np.concatenate([generator.normal(size=2 * count), generator.normal(size=2) / 2])
        at_one = self.residual(point)[0][0] + 1
        point[count:] /= math.sqrt(max(at_one, 1e-3))
        return point

    def grown(self, point: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One more knot, with a small bend."""
        count = (len(point) - 2) // 2
        knot, bend = 1.3 * generator.normal(), 0.1 * generator.normal()
        return np.concatenate([point[:count], [knot], point[count : 2 * count], [bend], point[2 * count :]])

    def residual(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Errors [N] and their Jacobian [N, P]; the optimiser asks for both at the same point in turn."""
        if self._last is None or self._last[0] != point.tobytes():
            count = (len(point) - 2) // 2
            found = kernel_on_sphere(torch.from_numpy(_parameters(point)), self.theta, self.kind)
            jacobian = found.jacobian.numpy().copy()
            jacobian[:, :count] *= 1 - np.tanh(point[:count] / LARGEST) ** 2
            self._last = point.tobytes(), (found.value - self.values).numpy(), jacobian
        return self._last[1], self._last[2]

    def fit(self, point: np.ndarray, roots: np.ndarray | None = None, steps: int = STEPS) -> _Found:
        roots = self.roots if roots is None else roots
        found = least_squares(
            lambda p: roots * self.residual(p)[0],
            point,
            lambda p: roots[:, None] * self.residual(p)[1],
            method="lm",
            max_nfev=steps,
        )
        return _Found(found.x, self.error(found.x))

    def error(self, point: np.ndarray) -> float:
        found = kernel_on_sphere(torch.from_numpy(_parameters(point)), self.fine, self.kind)
        return float((found.value - self.fine_values).abs().max())

    def best(self, fits: list[_Found]) -> _Found:
        """The most precise of the fits, each reweighted; of several that are good, the least noisy at finite width."""
        candidates: list[_Found] = []
        for found in sorted(fits, key=lambda found: found.error):
            if len(candidates) < POLISHED and not any(abs(found.error - c.error) < 1e-6 for c in candidates):
                candidates.append(found)
        polished = [self.polish(found) for found in candidates]
        good = [found for found in polished if found.error <= GOOD]
        if not good:
            return min(polished, key=lambda found: found.error)
        return min(good, key=self.noise)

    def polish(self, found: _Found) -> _Found:
        """A fit made one of nearly least largest error: weights grow where the error is large."""
        best = last = found
        roots = self.roots
        for _ in range(ROUNDS):
            size = np.abs(self.residual(last.point)[0])
            roots = roots * np.sqrt(size / size.max() + 0.1)
            roots = roots / math.sqrt(np.mean(roots**2))
            last = self.fit(last.point, roots, ROUND)
            best = min(best, last, key=lambda found: found.error)
        return best

    def noise(self, found: _Found) -> float:
        """Variance of one neuron's share of K(1)."""
        activation = self.activation(found.point, 1.0)
        return float(variances(activation, activation.breaks(), 1.0, self.kind, torch.zeros(1, dtype=torch.float64)))

    def activation(self, point: np.ndarray, radius: float) -> PiecewiseLinear:
        count = (len(point) - 2) // 2
        parameters = _parameters(point)
        parameters[count:] *= math.sqrt(self.scale)
        order = np.argsort(parameters[:count])
        knots, bends = parameters[:count][order], parameters[count : 2 * count][order]
        return PiecewiseLinear(knots.tolist(), bends.tolist(), parameters[-2], parameters[-1], radius)


def _parameters(point: np.ndarray) -> np.ndarray:
    parameters = point.copy()
    count = (len(point) - 2) // 2
    parameters[:count] = LARGEST * np.tanh(point[:count] / LARGEST)
    return parameters


class _Kernel(NamedTuple):
    value: Tensor  # [N]
    jacobian: Tensor  # [N, P]


def kernel_on_sphere(parameters: Tensor, theta: Tensor, kind: str) -> _Kernel:
    """The kernel of knots, bends, slope, offset (in this order: P = 2 J + 2 numbers) at angles theta [N]."""
    count = (len(parameters) - 2) // 2
    knots, bends, slope, offset = parameters.split([count, count, 1, 1])
    rho = torch.cos(theta)
    m = moments(knots[:, None, None], knots[None, :, None], theta)
    rr, sr, ss, ds = (torch.einsum("j,ijn->ni", bends, t) for t in m)
    p, at = above(knots), density(knots)
    mean = at - knots * p
    nngp = rr @ bends + 2 * slope * rho * (bends @ p) + 2 * offset * (bends @ mean) + slope**2 * rho + offset**2
    to_bends = 2 * (rr + slope * rho[:, None] * p + offset * mean)
    to_knots = -2 * bends * (sr + slope * rho[:, None] * at + offset * p)
    to_slope = 2 * rho * (bends @ p + slope)
    to_offset = (2 * (bends @ mean + offset)).expand_as(rho)
    if kind == "ntk":
        nngp = nngp + rho * (ss @ bends + 2 * slope * (bends @ p) + slope**2)
        to_bends = to_bends + 2 * rho[:, None] * (ss + slope * p)
        to_knots = to_knots + 2 * rho[:, None] * bends * (ds - slope * at)
        to_slope = to_slope + 2 * rho * (bends @ p + slope)
    return _Kernel(nngp, torch.cat([to_knots, to_bends, to_slope[:, None], to_offset[:, None]], 1))
