"""What a comparison is: a question asked of one cell's trained members, answered with scores."""

from __future__ import annotations

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
