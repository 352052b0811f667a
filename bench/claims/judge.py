"""From one number a seed to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bench.claims.claim import Claim, Statistics, Verdict, Window


@dataclass(frozen=True)
class Check:
    """One statistic, judged.

    Attributes:
        value, standard_error: of the mean over seeds; nan error with a single seed.
        margin: half the width of the one-sided confidence bound at the check's size, t * standard error.
        distance: of the mean from the nearest bound, in standard deviations of one seed; positive inside the window.
        every: each seed was judged by itself.
        values: one a seed.
    """

    name: str
    verdict: Verdict
    value: float
    standard_error: float
    margin: float
    distance: float
    low: float
    high: float
    every: bool
    values: tuple[float, ...]


def judge(claim: Claim, statistics: Statistics) -> tuple[Verdict, tuple[Check, ...]]:
    """The claim's verdict: refuted if one window refutes it, holds if all hold.

    Raises:
        KeyError: a statistic that no window names, or none at all.
    """
    unknown = set(statistics) - set(claim.windows)
    if unknown or not statistics:
        raise KeyError(f"claim {claim.name}: statistics {sorted(unknown) or 'none'} have no window.")
    alpha = claim.alpha / len(claim.windows)
    checks = tuple(
        check(name, statistics[name], window, alpha) for name, window in claim.windows.items() if name in statistics
    )
    return _together([c.verdict for c in checks]), checks


def missing(claim: Claim, statistics: Statistics) -> list[str]:
    """The windows that the claim's own statistics leave out; a control may leave out some."""
    return [name for name in claim.windows if name not in statistics]


def check(name: str, values: float | Sequence[float] | np.ndarray, window: Window, alpha: float) -> Check:
    """Judge one statistic.

    "refuted": the window lies beyond the one-sided confidence bound of size ``alpha`` (Student t, seeds - 1 degrees of
    freedom); for ``every``, one seed lies outside. "holds": the mean lies in the window (for a prediction, within the
    bound) and the seeds scatter so little that a value ``gap`` beyond would have been refuted. Else "inconclusive".
    """
    x = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if x.ndim != 1 or not len(x):
        raise ValueError(f"statistic {name} must be one number a seed, not an array of shape {list(x.shape)}.")
    mean, n = float(x.mean()), len(x)
    deviation = float(x.std(ddof=1)) if n > 1 else math.nan
    error = deviation / math.sqrt(n)
    outside = max(window.low - mean, mean - window.high)  # negative inside
    distance = -outside / deviation if deviation > 0 else math.copysign(math.inf, -outside)
    if not np.isfinite(x).all():
        verdict: Verdict = "inconclusive"
        margin = math.nan
    elif window.every:
        verdict = "holds" if bool(((x >= window.low) & (x <= window.high)).all()) else "refuted"
        margin = 0.0
    else:
        margin = float(stats.t.isf(alpha, n - 1)) * math.hypot(error, window.error) if n > 1 else math.inf
        prediction = window.low == window.high
        if outside > margin:
            verdict = "refuted"
        elif margin <= window.gap and (prediction or outside <= 0):
            verdict = "holds"
        else:
            verdict = "inconclusive"
    seeds = tuple(map(float, x))
    return Check(name, verdict, mean, error, margin, distance, window.low, window.high, window.every, seeds)


def expected_of_controls(recorded: Verdict) -> Verdict:
    """What a control must come to: the opposite of what is on record."""
    return "holds" if recorded == "refuted" else "refuted"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    if "refuted" in verdicts:
        return "refuted"
    return "holds" if all(verdict == "holds" for verdict in verdicts) else "inconclusive"
