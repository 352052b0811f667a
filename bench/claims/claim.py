"""What a claim is: a statement about Records that can fail, with a control that must fail."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bench.record import Record
from bench.studies.study import Request

Verdict = Literal["holds", "refuted", "inconclusive"]
Size = Literal["cpu", "gpu"]
Kind = Literal["theorem", "calibrated"]

Statistics = Mapping[str, Any]
"""Name -> one number an independent seed: a sequence, an array, or a single number."""

Records = tuple[Record, ...]
"""One a request, in the order of the claim's ``requests``."""

ALPHA = 5e-5
MOST_SEEDS = 1000


def nothing() -> str:
    return ""


@dataclass(frozen=True)
class Window:
    """Where a statistic must lie.

    Attributes:
        low, high: the bounds. For a theorem with a prediction, both are that prediction (see ``predicted``).
        gap: how far beyond the window a true value must be to be seen: a claim whose seeds scatter so much that it
            could not have seen that is "inconclusive", never "holds".
        every: each seed must lie within by itself, with no averaging: for identities that are exact up to rounding, and
            for statements of the kind "in every run". Then ``gap`` is not asked for.
        error: standard error of a prediction; 0 for a bound.
    """

    low: float = -math.inf
    high: float = math.inf
    gap: float = math.inf
    every: bool = False
    error: float = 0.0

    def __post_init__(self) -> None:
        if math.isinf(self.low) and math.isinf(self.high):
            raise ValueError("A window without a bound admits everything: give low, high or both.")
        if not self.low <= self.high:
            raise ValueError(f"A window needs low <= high, not {self.low} and {self.high}.")
        if not self.every and not 0 < self.gap < math.inf:
            raise ValueError("A window needs gap, the distance beyond it that must be seen, or every=True.")


def predicted(value: float, gap: float, error: float = 0.0) -> Window:
    """The window of a theorem: the seeds' mean agrees with ``value``, and could have shown a difference of ``gap``."""
    return Window(value, value, gap, error=error)


@dataclass(frozen=True)
class Control:
    """The same check with one deliberately wrong ingredient: it must be rejected.

    Attributes:
        wrong: what is wrong, in words: "no gamma^2 in the ridge", "shuffled targets", "the labels as predictor".
        statistics: as the claim's, of the same names (or some of them), computed with that ingredient. The control must
            be "refuted". For a claim on record as refuted it is the other way round: an ingredient with which the
            statement is true, and with which the check must find that it "holds", since a check that nothing can pass
            refutes nothing.
    """

    wrong: str
    statistics: Callable[[Records], Statistics]


@dataclass(frozen=True)
class Claim:
    """A statement of theory about trained networks or kernels, checked on the Records of studies.

    Attributes:
        name: lower case with hyphens; unique.
        statement: one sentence, as a reader would say it.
        source: paper and equation or section, or where it was first measured.
        kind: "theorem" (a prediction and its standard error, or an identity) or "calibrated" (a window set from
            measurements; ``calibration`` says which seeds, and when).
        requests: the studies it needs, for a size ("cpu": seconds, "gpu") and the seeds. Claims that ask for the same
            study with the same settings share it.
        statistics: one number an independent seed, under a name each, from those studies' records.
        windows: where each of them must lie; the claim holds if all do.
        controls: at least one.
        recorded: the verdict on record; a run that ends otherwise fails.
        seeds: how many, by default.
        alpha: one-sided size: the probability that a true statement is refuted by chance (Student t with seeds - 1
            degrees of freedom), shared among the windows.
        power: what the check could have seen, in words and numbers; also where ``alpha`` does not apply (identities).
        calibration: seeds and date that set the windows of a calibrated claim.
        lacks: what it needs and this machine does not have, as a sentence; empty where nothing is lacking. A claim that
            lacks something is reported as skipped, with that sentence.
    """

    name: str
    statement: str
    source: str
    kind: Kind
    requests: Callable[[Size, tuple[int, ...]], Sequence[Request]]
    statistics: Callable[[Records], Statistics]
    windows: Mapping[str, Window]
    controls: Sequence[Control]
    power: str
    recorded: Verdict = "holds"
    seeds: int = 8
    alpha: float = ALPHA
    calibration: str = ""
    lacks: Callable[[], str] = nothing

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.kind not in get_args(Kind):
            raise ValueError(f"claim {self.name}: kind must be {' or '.join(get_args(Kind))}, not {self.kind!r}.")
        if self.recorded not in get_args(Verdict):
            raise ValueError(
                f"claim {self.name}: recorded must be {', '.join(get_args(Verdict))}, not {self.recorded!r}."
            )
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"claim {self.name}: alpha must be above 0 and below .5, not {self.alpha}.")
        check_seeds(f"claim {self.name}: seeds", self.seeds)
        if not self.controls:
            raise ValueError(f"claim {self.name}: a claim needs a control, something wrong that it rejects.")
        if not self.windows:
            raise ValueError(f"claim {self.name}: a claim needs a window for at least one statistic.")
        if not (isinstance(self.windows, Mapping) and all(isinstance(w, Window) for w in self.windows.values())):
            raise ValueError(f"claim {self.name}: windows must be a Window for each statistic's name.")
        if not (isinstance(self.controls, list | tuple) and all(isinstance(c, Control) for c in self.controls)):
            raise ValueError(f"claim {self.name}: controls must be a list of Control objects.")
        for field in ("requests", "statistics", "lacks"):
            check_callable(f"claim {self.name}: {field}", getattr(self, field))
        if self.kind == "calibrated" and not self.calibration:
            raise ValueError(f"claim {self.name}: a calibrated claim says in calibration which seeds set it, and when.")


def check_name(name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be lower case words and numbers with hyphens between them, not {name!r}.")


def check_seeds(field: str, seeds: int) -> None:
    if not isinstance(seeds, int) or not MOST_SEEDS >= seeds >= 1:
        raise ValueError(f"{field} must be a whole number from 1 to {MOST_SEEDS}, not {seeds}.")


def check_callable(field: str, value: object) -> None:
    if not callable(value):
        raise ValueError(f"{field} must be a function, not {value!r}.")


@dataclass(frozen=True)
class Measurement:
    """What has no threshold: measured, reported, without a verdict. Fields as those of a ``Claim``."""

    name: str
    statement: str
    source: str
    requests: Callable[[Size, tuple[int, ...]], Sequence[Request]]
    statistics: Callable[[Records], Statistics]
    seeds: int = 8
    lacks: Callable[[], str] = nothing

    def __post_init__(self) -> None:
        check_name(self.name)
        check_seeds(f"measurement {self.name}: seeds", self.seeds)
        for field in ("requests", "statistics", "lacks"):
            check_callable(f"measurement {self.name}: {field}", getattr(self, field))
