"""Does a theory match a cell's networks? Only where it knows more than the labels and than every floor.

The trap: where a network has learnt its target, the labels themselves score R2 = .99 against it, and so does every
predictor that generalises. So the verdict is about skill, whose zero is the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bench.record import Record
from bench.report.formats import measured, number

Kind = Literal["match", "labels", "no match", "none"]

PREDICTORS = ("after", "initial", "infinite_ntk")
NAMES = {
    "after": "after kernel",
    "initial": "initial kernel",
    "infinite_ntk": "lazy theory",
    "infinite_nngp": "infinite-width NNGP",
    "features": "last features",
    "linearised": "linearised network",
    "laplace": "Laplace kernel",
    "agop_laplace": "AGOP-Laplace kernel",
    "labels": "labels",
    "network": "network",
}
FLOORS = ("laplace", "agop_laplace", "labels")

ERRORS = 2.0  # how many standard errors "beyond its error" means
HIGH_R2 = 0.95


@dataclass(frozen=True)
class Verdict:
    """What one predictor's scores say about one cell.

    Attributes:
        kind: "match"; "labels": R2 is high, but the labels would match as well; "no match"; "none": no verdict.
        sentence: the same with its numbers.
    """

    kind: Kind
    sentence: str


def flag(record: Record) -> str:
    """Why a cell carries no verdict; empty where it may."""
    if record.status != "done":
        return f"the cell is {record.status}" + (f" ({record.reason})" if record.reason else "")
    if record.card.get("unfinished"):
        return "its networks have not finished learning (regressions on labels and on their own outputs still differ)"
    return ""


def floor_skill(record: Record, predictor: str = "after") -> float:
    """The best floor in units of skill, nan where none was measured."""
    values = [score.value for name in FLOORS if (score := record.score(f"{name}/skill"))]
    if (own := record.score(f"{predictor}/skill")) and own.floor is not None:
        values.append(own.floor)
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def verdict(record: Record, predictor: str) -> Verdict:
    """Judge one predictor of one cell. A match needs skill above zero and every floor by 2 standard errors."""
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
    above = f"above the floor {number(floor)}" if math.isfinite(floor) else "no floor was measured"
    return Verdict("match", f"{name}: match ({text}, {above})")


def cell_sentence(record: Record) -> str:
    """One sentence for a cell: its verdicts, or why it carries none."""
    if reason := flag(record):
        return f"No verdict: {reason}."
    sentences = [v.sentence for p in PREDICTORS if not (v := verdict(record, p)).sentence.endswith("not measured")]
    return "; ".join(sentences) + "." if sentences else "No verdict: no predictor was scored."


def headline(records: Iterable[Record]) -> list[str]:
    """A sentence a predictor: how many cells it matches, and in how many the labels would have matched as well."""
    records = tuple(records)
    sentences = []
    for predictor in PREDICTORS:
        kinds = [verdict(record, predictor).kind for record in records]
        judged = len(kinds) - kinds.count("none")
        if judged == 0:
            continue
        sentence = f"The {NAMES[predictor]} matches {kinds.count('match')} of {judged} cells"
        if trapped := kinds.count("labels"):
            sentence += f"; in {trapped} more its R2 is above {HIGH_R2}, but the labels would match as well"
        sentences.append(sentence + ".")
    flagged = sum(bool(flag(record)) for record in records)
    if flagged:
        sentences.append(f"{flagged} of {len(records)} cells are flagged and carry no verdict.")
    return sentences or ["No cell carries a verdict."]
