"""Does a theory match a cell's networks? Only where it knows more than the labels and than every floor.

The trap: where a network has learnt its target, the labels themselves score R2 = .99 against it, and so does every
predictor that generalises. So the verdict is about skill, whose zero is the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bench.record import Record, Score
from bench.report.formats import measured, number

Kind = Literal["match", "weak", "labels", "no match", "none"]

PREDICTORS = ("after", "initial", "infinite_ntk")
NAMES = {
    "after": "after kernel",
    "initial": "initial kernel",
    "infinite_ntk": "lazy theory",
    "infinite_nngp": "infinite-width NNGP",
    "infinite": "infinite-width kernels (lazy theory, NNGP)",
    "features": "last features",
    "linearised": "linearised network",
    "laplace": "Laplace kernel",
    "agop_laplace": "AGOP-Laplace kernel",
    "labels": "labels",
    "network": "network",
}
SEED_SPECIFIC = ("after", "initial")  # of these; the lazy theory does not see the seed
FLOORS = ("laplace", "agop_laplace", "labels")

ERRORS = 2.0  # how many standard errors "beyond its error" means
HIGH_R2 = 0.95
WEAK_SKILL = 0.5  # below it, more than half of the labels' squared distance to the network is left


@dataclass(frozen=True)
class Verdict:
    """What one predictor's scores say about one cell.

    Attributes:
        kind: "match"; "weak": a match, but hardly a better one than the labels; "labels": R2 is high, but the labels
            would match as well; "no match"; "none": no verdict.
        sentence: the same with its numbers.
    """

    kind: Kind
    sentence: str


def flag(record: Record) -> str:
    """Why a cell carries no verdict; empty where it may."""
    if record.status != "done":
        return f"the cell is {record.status}" + (f" ({record.reason.rstrip('.')})" if record.reason else "")
    if record.card.get("unfinished"):
        return (
            "its tolerance shows: what is left of the training error makes regressions on the labels and on the "
            "networks' own outputs differ by more than a fifth of 1 - R2"
        )
    return ""


def no_verdict(record: Record) -> str:
    """Why none of its predictors has a verdict; empty where one may."""
    if reason := flag(record):
        return reason
    if not _skills(record):
        return "no skill was measured"
    return "a single network has no error" if _single(record) else ""


def floor_skill(record: Record, predictor: str = "after") -> float:
    """The best floor in units of skill, nan where none was measured."""
    values = [score.value for name in FLOORS if (score := record.score(f"{name}/skill"))]
    if (own := record.score(f"{predictor}/skill")) and own.floor is not None:
        values.append(own.floor)
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def verdict(record: Record, predictor: str) -> Verdict:
    """Judge one predictor of one cell: a match has R2 above zero, and skill above zero and every floor, by 2 errors."""
    name = NAMES.get(predictor, predictor)
    skill, r2 = record.score(f"{predictor}/skill"), record.score(f"{predictor}/r2")
    if reason := flag(record):
        return Verdict("none", f"{name}: no verdict: {reason}")
    if skill is None or not math.isfinite(skill.value):
        return Verdict("none", f"{name}: not measured")
    text = f"skill {measured(skill)}"
    if not math.isfinite(skill.standard_error):
        return Verdict("none", f"{name}: no verdict: a single seed has no error ({text})")
    surely, floor = skill.value - ERRORS * skill.standard_error, floor_skill(record, predictor)
    if surely <= 0 and r2 is not None and r2.value > HIGH_R2:
        return Verdict("labels", f"{name}: no match, the labels would match as well (R2 {measured(r2)}, but {text})")
    if surely <= 0:
        why = "not beyond its error" if skill.value > 0 else "worse than the labels"
        return Verdict("no match", f"{name}: no match ({text}: {why})")
    if surely <= floor:  # False for nan: no floor was measured
        return Verdict("no match", f"{name}: no match ({text}: not above the floor {number(floor)})")
    if r2 is not None and not r2.value - ERRORS * r2.standard_error > 0:
        return Verdict("no match", f"{name}: no match ({text}, but R2 {measured(r2)}: a constant is as near)")
    above = f"above the floor {number(floor)}" if math.isfinite(floor) else "no floor was measured"
    if skill.value < WEAK_SKILL:
        high = f", R2 {measured(r2)}" if r2 is not None else ""
        return Verdict("weak", f"{name}: weak match, not far better than the labels ({text}{high}, {above})")
    return Verdict("match", f"{name}: match ({text}, {above})")


def unavailable(records: Iterable[Record]) -> list[str]:
    """What could not be measured, one sentence a reason, with the cells that it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for comparison, sentence in record.unavailable.items():
            reasons.setdefault((comparison, sentence), []).append(record.name)
    sentences = []
    for (comparison, sentence), names in reasons.items():
        where = names[0] if len(names) == 1 else f"{cells(len(names))}, e.g. {names[0]}"
        sentences.append(f"{NAMES.get(comparison, comparison)} ({where}): {sentence}")
    return sentences


def cell_sentence(record: Record) -> str:
    """One sentence for a cell: its verdicts, or why it carries none."""
    if reason := flag(record):
        return f"No verdict: {reason}."
    sentences = [v.sentence for p in PREDICTORS if not (v := verdict(record, p)).sentence.endswith("not measured")]
    return "; ".join(sentences) + "." if sentences else f"No verdict: {no_verdict(record)}."


def headline(records: Iterable[Record]) -> list[str]:
    """A sentence a predictor: how many cells it matches, and in how many the labels would have matched as well."""
    records = tuple(records)
    sentences = []
    for predictor in PREDICTORS:
        verdicts = [(record, verdict(record, predictor).kind) for record in records]
        judged = [(record, kind) for record, kind in verdicts if kind != "none"]
        if not judged:
            continue
        kinds = [kind for _, kind in judged]
        sentence = f"The {NAMES[predictor]} matches {kinds.count('match')} of {cells(len(judged))}"
        if regimes := _by_regime(judged):
            sentence += f" ({regimes})"
        if weak := kinds.count("weak"):
            sentence += f"; {weak} more weakly, with a skill below {WEAK_SKILL}"
        if trapped := kinds.count("labels"):
            sentence += f"; in {trapped} more its R2 is above {HIGH_R2}, but the labels would match as well"
        sentences.append(sentence + ".")
    if not sentences:
        sentences.append("No cell carries a verdict.")
    if flagged := sum(bool(flag(record)) for record in records):
        sentences.append(
            f"Without a verdict, because not done or because the tolerance shows: {flagged} of {len(records)}."
        )
    if single := sum(not flag(record) and _single(record) for record in records):
        sentences.append(f"Without a verdict, because a single network has no error: {single} of {len(records)}.")
    return sentences


def cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _by_regime(judged: Iterable[tuple[Record, Kind]]) -> str:
    """Matches where the kernel moved little and where it moved a lot; empty if all cells are of one regime."""
    regimes: dict[str, list[Kind]] = {"lazy": [], "rich": []}
    for record, kind in judged:
        motion = record.score("kernel/motion")
        if motion is not None and math.isfinite(motion.value):
            regimes["lazy" if motion.value < 1 else "rich"].append(kind)
    if not all(regimes.values()):
        return ""
    lazy, rich = (f"{kinds.count('match')} of {len(kinds)}" for kinds in regimes.values())
    return f"lazy, kernel motion below 1: {lazy}; rich: {rich}"


def _single(record: Record) -> bool:
    """Whether it has a skill but no error of it."""
    skills = _skills(record)
    return bool(skills) and not any(math.isfinite(score.standard_error) for score in skills)


def _skills(record: Record) -> list[Score]:
    scores = [record.score(f"{predictor}/skill") for predictor in PREDICTORS]
    return [score for score in scores if score is not None and math.isfinite(score.value)]
