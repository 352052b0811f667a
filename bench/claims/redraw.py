"""Do verdicts depend on luck? Every claim again on fresh seeds, many times: ``python -m bench.claims --redraw 20``.

A true statement is refuted by chance with the probability that the claim states, and its mean should be seed standard
deviations away from the threshold. Both are counted here. It takes hours for the whole suite; what was done is a line
each in a file, and is read from there by the next call as long as the code is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import store
from bench.claims.claim import Claim, Size, Window
from bench.claims.judge import expected_of_controls
from bench.claims.run import Outcome, check
from bench.studies.study import fingerprint

FIRST, APART = 60_000, 1_000
"""Seeds of set k: from FIRST + APART k on. No window was set on them, and no two sets share any."""
NEAR = 4.0
"""Seed standard deviations from the threshold, that a claim should have at least; of a prediction, standard errors that
the mean of all sets may be off at most."""

Line = Mapping[str, Any]


def redraw(
    claims: Sequence[Claim],
    folder: Path,
    results: Path,
    sets: int,
    size: Size = "cpu",
    seeds: int | None = None,
    jobs: int | None = None,
    own: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Line]:
    """One line a claim and seed set, old and new, in no order; none of a claim that lacks something here.

    The first set of all claims comes first and tells what each costs; then claim by claim, the cheapest first.

    Args:
        folder, size, seeds, jobs, own: as for ``check``.
        results: the file of lines; a line of other code, size or number of seeds is left there and not counted, and
            what could not be judged is tried again.
        sets: how many seed sets.
        tell: told of each line, and of verdicts that are not as on record.
    """
    code = fingerprint(own)
    known = {
        (line["claim"], line["set"]): line
        for line in store.read_lines(results)
        if (line["code"], line["size"], line["asked_seeds"]) == (code, size, seeds) and line["values"]
    }

    def attempt(claim: Claim, number: int) -> Line | None:
        if (claim.name, number) not in known:
            first = FIRST + APART * number
            (outcome,) = check([claim], folder, size, seeds, first, jobs, own=own)
            if not isinstance(outcome, Outcome):
                tell(f"skipped {claim.name}: {outcome.reason}")
                return None
            line = store.plain({**_line(outcome, number), "code": code, "size": size, "asked_seeds": seeds})
            known[claim.name, number] = line
            store.append_line(results, line)
            said = "as on record" if line["as_recorded"] else f"{line['verdict']}, NOT as on record. {line['reason']}"
            missed = "".join(f" Control NOT rejected: {wrong}." for wrong in line["controls_missed"])
            tell(f"{claim.name}, seeds from {first}, {line['seconds']:.1f} s: {said}{missed}")
        return known[claim.name, number]

    cost = {claim.name: line["seconds"] for claim in claims if (line := attempt(claim, 0)) is not None}
    for claim in sorted((claim for claim in claims if claim.name in cost), key=lambda claim: cost[claim.name]):
        for number in range(1, sets):
            attempt(claim, number)
    wanted = {claim.name for claim in claims}
    return [line for (name, number), line in known.items() if name in wanted and number < sets]


def summary(claims: Sequence[Claim], lines: Iterable[Line], sets: int) -> dict[str, Any]:
    """The table: flips within the stated sizes, and how far each claim is from its threshold.

    ``flips`` are verdicts that are not the one on record. ``bound``: the number of flips that chance alone exceeds with
    probability 5 % at most, if every trial flips with its claim's alpha (two sides: 2 alpha) and trials are
    independent. ``distance`` is of the mean over all values of all sets from the nearest bound that decides, in
    standard deviations of one value; for a prediction, where there is no window, ``z`` is the mean's deviation in
    standard errors instead: beyond 4 the prediction itself is in doubt, even if no set had seeds enough to refute it.
    """
    by_claim: dict[str, list[Line]] = {claim.name: [] for claim in claims}
    for line in lines:
        by_claim[line["claim"]].append(line)
    claims = [claim for claim in claims if by_claim[claim.name]]
    rows = [_row(claim, sorted(by_claim[claim.name], key=lambda line: line["set"])) for claim in claims]
    trials = [(claim, len(by_claim[claim.name])) for claim in claims]
    bound = binomial_bound([2 * claim.alpha for claim, count in trials for _ in range(count)])
    flips = sum(len(row["flips"]) for row in rows)
    return {
        "sets": sets, "complete": all(row["sets"] == sets for row in rows), "claims_in_all_sets": sum(
            row["sets"] == sets for row in rows), "trials": sum(count for _, count in trials), "flips": flips,
        "bound": bound, "within_bound": flips <= bound,
        "controls_missed": sum(len(row["controls_missed"]) for row in rows),
        "closer_than_4_deviations": [row["name"] for row in rows if row["distance"] is not None
                                     and row["distance"] < NEAR],
        "predictions_more_than_4_errors_off": [
            row["name"] for row in rows if any(abs(s["z"] or 0) > NEAR for s in row["statistics"].values())],
        "cpu_seconds": round(sum(row["seconds"] for row in rows), 1), "claims": rows,
    }  # fmt: skip


def binomial_bound(chances: Sequence[float], confidence: float = 0.95) -> int:
    """The smallest k with P(at most k) >= confidence of as many independent trials with these chances."""
    law = np.zeros(len(chances) + 1)
    law[0] = 1.0
    for chance in chances:
        law[1:] = law[1:] * (1 - chance) + law[:-1] * chance
        law[0] *= 1 - chance
    return int(np.argmax(law.cumsum() >= confidence - 1e-12))


def _line(outcome: Outcome, number: int) -> dict[str, Any]:
    expected = expected_of_controls(outcome.claim.recorded)
    return {
        "claim": outcome.claim.name, "set": number, "verdict": outcome.verdict, "reason": outcome.reason,
        "as_recorded": not outcome.reason and outcome.verdict == outcome.claim.recorded,
        "values": {check.name: check.values for check in outcome.checks},
        "controls_missed": [control.wrong for control in outcome.controls if control.verdict != expected],
        "seconds": outcome.seconds,
    }  # fmt: skip


def _row(claim: Claim, lines: Sequence[Line]) -> dict[str, Any]:
    found = {name: _statistic(window, [v for line in lines for v in line["values"].get(name, ())])
             for name, window in claim.windows.items()}  # fmt: skip
    known = [row["distance"] for row in found.values() if row["distance"] is not None]
    # Refuted is what one window refutes: the farthest outside counts; else all must hold, and the nearest counts.
    distance = (-min(known) if claim.recorded == "refuted" else min(known)) if known else None
    return {
        "name": claim.name, "recorded": claim.recorded, "alpha": claim.alpha, "sets": len(lines), "distance": distance,
        "flips": [{"set": line["set"], "verdict": line["verdict"], "reason": line["reason"]}
                  for line in lines if not line["as_recorded"]],
        "controls_missed": [{"set": line["set"], "wrong": wrong}
                            for line in lines for wrong in line["controls_missed"]],
        "statistics": found, "seconds": round(sum(line["seconds"] for line in lines), 2),
    }  # fmt: skip


def _statistic(window: Window, values: Sequence[float | None]) -> dict[str, Any]:
    x = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    mean = float(x.mean()) if len(x) else math.nan
    deviation = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    row = {"n": len(x), "mean": mean, "deviation": deviation, "low": window.low, "high": window.high,
           "distance": None, "z": None}  # fmt: skip
    if window.low == window.high:
        error = math.hypot(deviation / math.sqrt(max(1, len(x))), window.error)
        row["z"] = (mean - window.low) / error if error > 0 else None
    elif deviation > 0:
        row["distance"] = min(mean - window.low, window.high - mean) / deviation
    return store.plain(row)
