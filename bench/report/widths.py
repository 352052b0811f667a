"""How the finite width shows: quantities that should fall as a power of it, with the fitted power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.record import Score
from bench.report.studies import Study, width_of

QUANTITIES = {
    "kernel/initial_to_infinite": "distance of the initial to the infinite kernel",
    "kernel/motion": "kernel motion",
    "infinite_ntk/relative_l2": "distance of the network to the lazy theory",
    "linearised/relative_l2": "distance of the network to its linearisation",
}
LEAST = 3  # widths: through two points there is always a line

# Quantity -> the power of the width in theory: with richness ntk, and at a fixed richness, where what the kernel does
# while training does not depend on the width and the network's limit is not the lazy theory.
THEORY = {
    "kernel/initial_to_infinite": ("-1/2", "-1/2"),
    "kernel/motion": ("-1", "0 once wide"),
    "infinite_ntk/relative_l2": ("-1/2", "0 once wide"),
    "linearised/relative_l2": (
        "-1; -3/4 with kinks",
        "0 once wide",
    ),  # ReLU: masks flip; a heuristic that measurements bear out
}


@dataclass(frozen=True)
class PowerLaw:
    """value = exp(intercept) * width ** slope.

    Attributes:
        slope, slope_error: the error is the larger of what the seeds say and what the residuals say.
        intercept: in natural logarithms.
        widths, scores: what it was fitted to; widths ascending.
        richness: of these cells.
    """

    slope: float
    slope_error: float
    intercept: float
    widths: np.ndarray
    scores: tuple[Score, ...]
    richness: Any = None


def fit(widths: Sequence[float], scores: Sequence[Score], richness: Any = None) -> PowerLaw | None:
    """Least squares in logarithms; None with fewer than three distinct widths at which the value is positive."""
    usable = sorted((w, i) for i, w in enumerate(widths) if w > 0 and 0 < scores[i].value < math.inf)
    if len({w for w, _ in usable}) < LEAST:
        return None
    x, chosen = np.log([w for w, _ in usable]), [scores[i] for _, i in usable]
    values = np.array([score.value for score in chosen])
    y, errors = np.log(values), np.array([score.standard_error for score in chosen]) / values
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    from_residuals = math.sqrt(float(residual @ residual) / (len(x) - 2) / spread)
    from_seeds = math.sqrt(float(np.square(centred * errors).sum())) / spread
    error = np.fmax(from_residuals, from_seeds)  # nan (one seed) loses
    intercept = float(y.mean() - slope * x.mean())
    return PowerLaw(slope, float(error), intercept, np.exp(x), tuple(chosen), richness)


def power_laws(study: Study, quantity: str) -> list[PowerLaw]:
    """The fit of every richness that has three widths or more."""
    found = []
    for richness in study.richnesses:
        pairs = [(width_of(r), s) for r in study.at(richness) if r.status == "done" and (s := r.score(quantity))]
        if law := fit([w for w, _ in pairs], [s for _, s in pairs], richness):
            found.append(law)
    return found
