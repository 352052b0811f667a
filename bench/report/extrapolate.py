"""The infinite-width limit at a cell's own richness: the ensemble mean, extrapolated in 1/width from two widths.

The infinite-width NTK is the lazy theory. The limit of a *rich* cell is known through its networks only: their mean
output is f + b/n + O(1/n^2) in the width n, so (n2 mean2 - n1 mean1) / (n2 - n1) removes the b/n. One comparison sees
one cell; this needs two, so it is made here, from the test outputs that the Records keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.record import Record, Score, summarise
from bench.report.studies import Study, array, width_of


@dataclass(frozen=True)
class Draw:
    """One data draw of one cell: f [inits, n_test, c], y [n_test, c], and which inits and members they are."""

    data: int
    f: np.ndarray
    y: np.ndarray
    inits: np.ndarray


@dataclass(frozen=True)
class Limit:
    """The extrapolated mean of one data draw.

    Attributes:
        mean: [n_test, c].
        influence: (width, init) -> how far that one network moves the mean, [n_test, c]; the squares of their effects
            add up to the variance, as inits are independent (of each other, and across widths).
        own: (width, init) -> what to take from the mean to leave that network out of it, [n_test, c].
        scatter: width -> squared norm of the part of a single network in the mean, were it the only one of its width:
            the scatter of the mean is that, over the number of inits, summed over widths.
        inits: width -> how many there are.
        y: clean test labels, by which draws of different cells are matched.
        data: the draw's index.
    """

    mean: np.ndarray
    influence: dict[tuple[float, int], np.ndarray]
    own: dict[tuple[float, int], np.ndarray]
    scatter: dict[float, float]
    inits: dict[float, int]
    y: np.ndarray
    data: int

    def noise(self, left_out: tuple[float, int] | None = None) -> float:
        """Squared distance of the mean to that of infinitely many inits, as expected; 0 where one init hides it."""
        parts = [
            scatter / (self.inits[width] - (left_out is not None and left_out in self.own and left_out[0] == width))
            for width, scatter in self.scatter.items()
        ]
        return float(np.nan_to_num(sum(parts)))


@dataclass(frozen=True)
class Extrapolated:
    """The extrapolated mean, scored against the networks of one cell.

    Attributes:
        record: the cell that is predicted.
        widths: the two widths that the limit comes from.
        r2, skill: against each network, which is left out of the mean where it is part of it, and less what the scatter
            of a mean of few inits costs; their error is over the networks of the cell.
        r2_error, skill_error: what the scatter of the inits in the two means does to them; nan with one init.
    """

    record: Record
    widths: tuple[float, float]
    r2: Score
    skill: Score
    r2_error: float
    skill_error: float


def draws(record: Record) -> list[Draw]:
    """A cell's networks by data draw; empty where the record does not keep their outputs."""
    f, y = array(record, "f_test"), array(record, "y_test")
    if f is None or y is None or f.ndim != 3 or y.ndim != 3 or f.shape[1:] != y.shape[1:]:
        return []
    data = np.asarray(record.arrays.get("member_data", np.zeros(len(f)))).astype(int).reshape(-1)
    init = np.asarray(record.arrays.get("member_init", np.arange(len(f)))).astype(int).reshape(-1)
    if len(data) != len(f) or len(init) != len(f):
        return []
    found = []
    for position, draw in enumerate(np.unique(data)):
        row = draw if draw < len(y) else position
        chosen = (data == draw) & np.isfinite(f).all(axis=(1, 2))
        if row < len(y) and chosen.any():
            found.append(Draw(int(draw), f[chosen], y[row], init[chosen]))
    return found


def limits(narrow: Record, wide: Record) -> list[Limit]:
    """The extrapolated mean of every data draw that both cells share."""
    n1, n2 = width_of(narrow), width_of(wide)
    found = []
    candidates = draws(narrow)
    for draw2 in draws(wide):
        draw1 = _same_data(draw2.y, draw2.data, candidates)
        if draw1 is None:
            continue
        mean, influence, own = np.zeros_like(draw2.y), {}, {}
        scatter, inits = {}, {}
        for width, weight, draw in ((n1, -n1 / (n2 - n1), draw1), (n2, n2 / (n2 - n1), draw2)):
            average, others = draw.f.mean(axis=0), len(draw.f) - 1
            mean = mean + weight * average
            inits[width] = len(draw.f)
            scatter[width] = float(np.square(weight * (draw.f - average)).sum() / others) if others else np.nan
            for i, f in zip(draw.inits, draw.f, strict=True):
                apart = weight * (f - average)
                influence[width, int(i)] = apart / np.sqrt(len(draw.f) * others) if others else np.nan * apart
                own[width, int(i)] = apart / others if others else np.nan * apart
        found.append(Limit(mean, influence, own, scatter, inits, draw2.y, draw2.data))
    return found


def extrapolations(study: Study) -> Iterator[Extrapolated]:
    """For each richness with two widths or more: the limit from the widest two, against every cell of it."""
    for richness in study.richnesses:
        cells = [r for r in study.at(richness) if np.isfinite(width_of(r)) and r.status == "done" and draws(r)]
        widths = sorted({width_of(record) for record in cells})
        if len(widths) < 2:
            continue
        narrow, wide = (next(r for r in cells if width_of(r) == width) for width in widths[-2:])
        means = limits(narrow, wide)
        for record in cells:
            if scored := _scored(record, means, (widths[-2], widths[-1])):
                yield scored


def _scored(record: Record, means: list[Limit], widths: tuple[float, float]) -> Extrapolated | None:
    matched = [(limit, draw) for limit in means if (draw := _same_data(limit.y, limit.data, draws(record)))]
    networks = [
        (limit, draw, f, (width_of(record), int(init)))
        for limit, draw in matched
        for f, init in zip(draw.f, draw.inits, strict=True)
        if np.isfinite(limit.own.get((width_of(record), int(init)), 0.0)).all()  # a mean of one leaves nothing
    ]
    if not networks:
        return None
    data = [limit.data for limit, *_ in networks]
    scores, errors = [], []
    for metric in ("r2", "skill"):
        values: list[float] = []
        effects: dict[tuple[int, float, int], float] = {}
        for limit, draw, f, itself in networks:
            size = np.square((draw.y if metric == "skill" else f.mean(axis=0)) - f).sum()
            residual = limit.mean - limit.own.get(itself, 0.0) - f
            values.append(1 - (np.square(residual).sum() - limit.noise(itself)) / size if size > 0 else np.nan)
            for key, moved in limit.influence.items():  # one network's effects on all of them add before the squares
                slope = -2 * (residual * moved).sum() / size / len(data) if size > 0 else np.nan
                one = (limit.data, *key)
                effects[one] = effects.get(one, 0.0) + slope * (key != itself)
        scores.append(summarise(f"extrapolated/{metric}", values, data))
        errors.append(float(np.sqrt(sum(effect**2 for effect in effects.values()))))
    return Extrapolated(record, widths, scores[0], scores[1], errors[0], errors[1])


def _same_data(y: np.ndarray, data: int, candidates: list[Draw]) -> Draw | None:
    """The draw with the same test labels; that of the same index first, as a fixed test set gives all the same."""
    equal = [draw for draw in candidates if draw.y.shape == y.shape and np.array_equal(draw.y, y)]
    return next((draw for draw in equal if draw.data == data), equal[0] if equal else None)
