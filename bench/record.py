"""What a study leaves behind: scores and named arrays, plain data that the report and the claims read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA = 1

STATUSES = ("done", "unconverged", "diverged", "failed", "interrupted")


@dataclass(frozen=True)
class Score:
    """One number with its error.

    Attributes:
        name: ``"<predictor>/<metric>"``, for example ``"after/skill"``; ``"after@self/r2"`` where the target was the
            network's own training outputs, ``"after#sum/r2"`` for another multi-output form of the kernel.
        value: mean over the seeds.
        standard_error: of that mean, nested (init within data); nan with a single seed.
        n_seeds: how many members were averaged.
        ceiling: what a perfect predictor that does not know this seed could score, where that is known.
        floor: what the best rival that is no theory of this network scores, where that is known.
        per_member: the values behind the mean, in the order of the members that were scored.
    """

    name: str
    value: float
    standard_error: float
    n_seeds: int
    ceiling: float | None = None
    floor: float | None = None
    per_member: tuple[float, ...] = ()


@dataclass(frozen=True)
class Record:
    """The result of one study (one cell of the main job).

    Attributes:
        name: the run's folder, ``<task>-<model>-w<width>-<hash>``.
        status: one of ``STATUSES``; ``reason`` says why, where it is not ``done``.
        card: the result card: everything that another group must know to compare its number with this one.
        scores: by comparison, in the order in which they ran.
        unavailable: comparison -> the sentence that says why it could not run.
        arrays: curves, spectra, predictions. Leading axis: the members that were scored.
    """

    name: str
    status: str
    reason: str
    card: Mapping[str, Any]
    scores: tuple[Score, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    schema: int = SCHEMA

    def score(self, name: str) -> Score | None:
        """The score of that name, or None where it was not measured."""
        return next((score for score in self.scores if score.name == name), None)


def nested_mean(values: Sequence[float], data: Sequence[int]) -> tuple[float, float]:
    """Mean over members and its standard error, with inits nested within data draws.

    The variance of the grand mean is the larger of the two mean squares of a one-way analysis of variance (between and
    within data draws), divided by the number of members: the between mean square is the textbook one, but with two
    draws it has a single degree of freedom and is often near zero by chance, and it cannot truly be below the other.

    Args:
        values: one number a member.
        data: the data draw of each member.

    Returns:
        mean and standard error; the error is nan with a single member.
    """
    x = np.asarray(values, dtype=np.float64)
    draws = np.asarray(data)
    if len(x) < 2:
        return float(x.mean()) if len(x) else float("nan"), float("nan")
    groups = [x[draws == draw] for draw in np.unique(draws)]
    mean_squares = []
    if len(groups) > 1:
        between = sum(len(group) * (group.mean() - x.mean()) ** 2 for group in groups) / (len(groups) - 1)
        mean_squares.append(between)
    if len(x) > len(groups):
        within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (len(x) - len(groups))
        mean_squares.append(within)
    return float(x.mean()), float(np.sqrt(max(mean_squares) / len(x)))


def summarise(
    name: str,
    values: Sequence[float],
    data: Sequence[int],
    ceiling: float | None = None,
    floor: float | None = None,
) -> Score:
    """The ``Score`` of one value a member (see ``nested_mean``)."""
    mean, error = nested_mean(values, data)
    return Score(name, mean, error, len(values), ceiling, floor, tuple(float(v) for v in values))
