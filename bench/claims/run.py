"""Run claims: the studies that they ask for, each once and several at a time, then the verdicts."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from bench import store, workers
from bench.claims.claim import Claim, Measurement, Records, Size, Verdict
from bench.claims.judge import Check, expected_of_controls, judge, missing
from bench.claims.registry import Item
from bench.record import Score, summarise
from bench.studies.study import Request, find, fingerprint, obtain


@dataclass(frozen=True)
class ControlOutcome:
    """What became of one control: it must come to ``expected``."""

    wrong: str
    verdict: Verdict
    expected: Verdict
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one claim.

    Attributes:
        seconds: CPU, of the studies it needs (shared ones count in full) when they ran.
        reason: why a claim could not be judged; empty where it was. Where a seed gave no finite number, it says so.
    """

    claim: Claim
    verdict: Verdict
    checks: tuple[Check, ...]
    controls: tuple[ControlOutcome, ...]
    seconds: float
    reason: str = ""

    @property
    def item(self) -> Claim:
        return self.claim

    @property
    def passed(self) -> bool:
        """The verdict is the one on record, and every control was rejected."""
        return (
            not self.reason
            and self.verdict == self.claim.recorded
            and all(control.verdict == control.expected for control in self.controls)
        )


@dataclass(frozen=True)
class Measured:
    """What a measurement gave: the mean over seeds of each statistic, with its error."""

    measurement: Measurement
    scores: tuple[Score, ...]
    seconds: float
    reason: str = ""

    @property
    def item(self) -> Measurement:
        return self.measurement

    @property
    def passed(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Skipped:
    """A claim or measurement that lacks something here, and what."""

    item: Item
    reason: str
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return True


Result = Outcome | Measured | Skipped


def check(
    items: Sequence[Item],
    folder: Path,
    size: Size = "cpu",
    seeds: int | None = None,
    first_seed: int = 0,
    jobs: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
    own: Path | None = None,
) -> list[Result]:
    """Run what these claims and measurements need, and judge them.

    Args:
        folder: of the studies' records; those of the same source code are read instead of run again.
        seeds: instead of each claim's own number.
        first_seed: seeds are the whole numbers from this one on; another one draws everything afresh.
        jobs: studies at a time, one thread each; None: as many as there are cores (one on a GPU).
        tell: told of each study that is done.
        own: the folder of a user's studies, whose source code counts like the suite's.
    """
    code = fingerprint(own)
    lacking: dict[str, str] = {}
    broken: dict[str, str] = {}
    wanted: dict[str, Sequence[tuple[str, Request]]] = {}
    for item in items:
        try:
            lacking[item.name] = item.lacks()
            wanted[item.name] = [] if lacking[item.name] else _requests(item, size, seeds, first_seed)
        except (Exception, SystemExit) as error:  # one claim's mistake must not end the others
            broken[item.name] = _sentence(error)
    requests = {name: request for named in wanted.values() for name, request in named}
    jobs = jobs or (1 if size == "gpu" else os.cpu_count() or 1)
    failed = _run(requests, folder, code, jobs, tell)
    results: list[Result] = []
    for item in items:
        if item.name in broken:
            results.append(_unjudged(item, broken[item.name]))
        elif lacking[item.name]:
            results.append(Skipped(item, lacking[item.name]))
        else:
            results.append(_judged(item, wanted[item.name], failed, folder, code, seeds or item.seeds))
    return results


def _requests(item: Item, size: Size, seeds: int | None, first_seed: int) -> list[tuple[str, Request]]:
    """Names and requests, in the claim's order."""
    count = item.seeds if seeds is None else seeds
    return [(request.name, request) for request in item.requests(size, tuple(range(first_seed, first_seed + count)))]


def _run(
    requests: Mapping[str, Request], folder: Path, code: str, jobs: int, tell: Callable[[str], None]
) -> dict[str, str]:
    """Run what is missing, the longest first; returns name -> sentence of those that failed."""
    missing = {name: request for name, request in requests.items() if find(request, folder, code) is None}
    if not missing:
        return {}
    listed = sorted(missing.values(), key=lambda request: -_seconds_before(request, folder))
    jobs = min(jobs, len(listed))
    outcomes: dict[str, str] = {}
    try:
        with (
            workers.forked("bench.claims"),
            joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered") as parallel,
        ):
            for name, reason in parallel(joblib.delayed(_attempt)(request, folder, code) for request in listed):
                outcomes[name] = reason
                tell(f"{len(outcomes)}/{len(listed)} {name}{': failed: ' + reason if reason else ''}")
    except Exception as error:  # a worker was killed, for its memory as a rule: what is done still counts
        tell(f"The studies that were running are lost: {_sentence(error)}")
        outcomes = dict.fromkeys(missing, "its worker process died: killed, or short of memory?") | outcomes
    return {name: reason for name, reason in outcomes.items() if reason}


def _attempt(request: Request, folder: Path, code: str) -> tuple[str, str]:
    torch.set_num_threads(1)  # one thread a study, and the same bits on every machine
    try:
        obtain(request, folder, code)
    except (Exception, SystemExit) as error:  # one study's failure must not end the others
        return request.name, _sentence(error)
    return request.name, ""


def _seconds_before(request: Request, folder: Path) -> float:
    """What it took the last time, even with older code; the unknown come first."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(store.read_json(folder / request.name / "record.json")["card"]["seconds"])
    return float("inf")


def _judged(
    item: Item, requests: Sequence[tuple[str, Request]], failed: Mapping[str, str], folder: Path, code: str, seeds: int
) -> Outcome | Measured:
    reasons = [f"{name} failed: {failed[name]}" for name, _ in requests if name in failed]
    if reasons:
        return _unjudged(item, reasons[0])
    found = [find(request, folder, code) for _, request in requests]
    records = tuple(record for record in found if record is not None)
    if len(records) < len(found):
        lost = requests[found.index(None)][0]
        return _unjudged(item, f"The record of {lost} is gone: was there another run with other claims in {folder}?")
    seconds = sum(float(record.card["seconds"]) for record in records)
    try:
        if isinstance(item, Measurement):
            return Measured(item, _scores(item.statistics(records)), seconds)
        return verdict(item, records, seconds, seeds)
    except (Exception, SystemExit) as error:  # a claim that cannot read its records is a failed claim, no failed run
        return _unjudged(item, _sentence(error))


def verdict(claim: Claim, records: Records, seconds: float, seeds: int) -> Outcome:
    """Judge a claim and its controls on these records.

    Raises:
        KeyError: a window without a statistic.
        ValueError: a statistic of more values than seeds, which are not independent.
    """
    statistics = claim.statistics(records)
    if absent := missing(claim, statistics):
        raise KeyError(f"no statistic for the windows {', '.join(absent)}")
    for name, values in statistics.items():
        if np.size(values) > seeds:
            raise ValueError(f"statistic {name} has {np.size(values)} values for {seeds} seeds: give one a seed")
    own, checks = judge(claim, statistics)
    expected = expected_of_controls(claim.recorded)
    controls = []
    for control in claim.controls:
        found, its_checks = judge(claim, control.statistics(records))
        controls.append(ControlOutcome(control.wrong, found, expected, its_checks))
    return Outcome(claim, own, checks, tuple(controls), seconds, _no_number(checks, records))


def _no_number(checks: Sequence[Check], records: Records) -> str:
    """Which statistics have a seed without a finite number, and what the studies say of it."""
    names = [check.name for check in checks if not all(map(math.isfinite, check.values))]
    if not names:
        return ""
    said = [record.reason for record in records if record.reason]
    return " ".join([f"A seed gave no finite number: {', '.join(names)}.", *said])


def _scores(statistics: Mapping[str, Any]) -> tuple[Score, ...]:
    rows = {name: np.atleast_1d(np.asarray(values, dtype=np.float64)) for name, values in statistics.items()}
    return tuple(summarise(name, list(values), list(range(len(values)))) for name, values in rows.items())


def _sentence(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _unjudged(item: Item, reason: str) -> Outcome | Measured:
    if isinstance(item, Measurement):
        return Measured(item, (), 0.0, reason)
    return Outcome(item, "inconclusive", (), (), 0.0, reason)
