"""What a comparison is: a question asked of one cell's trained members, answered with scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from bench.record import Score
from bench.trained import Trained


class UnavailableError(Exception):
    """A comparison cannot run for this cell; one sentence that says why. The others still run."""


@runtime_checkable
class Comparison(Protocol):
    """A comparison module: a frozen dataclass of settings. ``version`` rises when its numbers would change."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    def __call__(self, trained: Trained) -> list[Score]:
        """Scores of the members given, all of which reached their tolerance.

        Raises:
            UnavailableError: the question has no answer for this model or task.
        """
        ...

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        """Curves and predictions behind the scores, leading axis the members; empty where there are none."""
        ...


def unfinished(scores: Iterable[Score]) -> bool:
    """Whether the networks had far to go: the after-kernel on the labels and on the networks' own outputs disagree.

    True where R2 differs between the two targets by more than a fifth of 1 - R2; such a cell carries no claim.
    """
    values = {score.name: score.value for score in scores}
    r2, r2_self = (values.get(name, math.nan) for name in ("after/r2", "after@self/r2"))
    return abs(r2 - r2_self) > 0.2 * (1 - r2)
