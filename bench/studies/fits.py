"""Fits that studies make, one a seed, and what their seeds and residuals say of the error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bench.record import Score


@dataclass(frozen=True)
class Fit:
    """``y = intercept + slope t`` by least squares, one a seed.

    Attributes:
        slope, intercept: [seeds].
        slope_error, intercept_error: of their means over the seeds: the larger of what the scatter of the seeds says
            and what the residuals of the mean curve around its line say. The first knows nothing of a curve that bends,
            the second nothing of errors that all points of a seed share.
    """

    slope: np.ndarray
    intercept: np.ndarray
    slope_error: float
    intercept_error: float

    def negated(self) -> Fit:
        """Of -y: a decay's rate in place of its slope."""
        return replace(self, slope=-self.slope, intercept=-self.intercept)

    def slope_score(self, name: str) -> Score:
        return _score(name, self.slope, self.slope_error)

    def intercept_score(self, name: str) -> Score:
        return _score(name, self.intercept, self.intercept_error)


def line(t: np.ndarray, y: np.ndarray) -> Fit:
    """Args: t [k], at least two distinct; y [seeds, k]."""
    t, y = np.asarray(t, dtype=np.float64), np.atleast_2d(np.asarray(y, dtype=np.float64))
    centred = t - t.mean()
    spread = float(centred @ centred)
    slope = y @ centred / spread
    intercept = y.mean(1) - slope * t.mean()
    seeds, k = y.shape
    errors = [
        [float(values.std(ddof=1) / seeds**0.5) if seeds > 1 else np.nan for values in (slope, intercept)],
        [np.nan, np.nan],
    ]
    if k > 2:
        mean = y.mean(0)
        residual = mean - slope.mean() * t - intercept.mean()
        scatter = float(residual @ residual) / (k - 2)
        errors[1] = [(scatter / spread) ** 0.5, (scatter * (1 / k + t.mean() ** 2 / spread)) ** 0.5]
    slope_error, intercept_error = (float(np.fmax(*pair)) for pair in zip(*errors, strict=True))
    return Fit(slope, intercept, slope_error, intercept_error)


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exponents of power laws, one a seed: x [k] and y [seeds, k], positive."""
    return line(np.log(x), np.log(y)).slope


def ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The ratio of the means of [seeds] and [seeds], as jackknife pseudo-values, one a seed (Tukey 1958)."""
    seeds, whole = len(one), one.mean() / other.mean()
    if seeds == 1:
        return np.array([whole])
    without = (one.sum() - one) / (other.sum() - other)
    return np.asarray(seeds * whole - (seeds - 1) * without)


def power_law(x: np.ndarray, y: np.ndarray) -> Fit | None:
    """``y = exp(intercept) x^slope`` through the mean over the seeds, which is where noise averages out.

    ``slope`` and ``intercept`` are jackknife pseudo-values, one a seed (Tukey 1958): their mean and scatter are those
    of the fit of the mean, less its bias.

    Args:
        x: [k], positive.
        y: [seeds, k]; single values may be negative.

    Returns:
        None where the mean over the seeds, or over all but one of them, is not positive.
    """
    y = np.atleast_2d(np.asarray(y, dtype=np.float64))
    seeds = len(y)
    means = [y.mean(0), *(np.delete(y, i, 0).mean(0) for i in range(seeds) if seeds > 1)]
    if not all((mean > 0).all() for mean in means):  # nan, too
        return None
    t = np.log(np.asarray(x, dtype=np.float64))
    whole, *without = [line(t, np.log(mean)) for mean in means]
    if not without:
        return whole
    slope, intercept = (
        seeds * getattr(whole, name)[0] - (seeds - 1) * np.array([getattr(fit, name)[0] for fit in without])
        for name in ("slope", "intercept")
    )
    errors = [
        float(np.fmax(values.std(ddof=1) / seeds**0.5, error))
        for values, error in ((slope, whole.slope_error), (intercept, whole.intercept_error))
    ]
    return Fit(slope, intercept, *errors)


def _score(name: str, values: np.ndarray, error: float) -> Score:
    return Score(name, float(values.mean()), error, len(values), per_member=tuple(float(v) for v in values))
