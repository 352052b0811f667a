"""The main table, as text for a terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from bench.record import Record, Score
from bench.report.formats import ABSENT, bare, compact, error_of, number
from bench.report.studies import cell_order, model_label, richness_label, width_label, width_of
from bench.report.verdicts import NAMES, PREDICTORS, floor_skill, unavailable
from bench.store import plain

CARD = (
    "task", "n_train", "n_test", "x_shape", "outputs", "label_noise", "model", "activation", "depth", "readout",
    "width", "parameterization", "parameters", "richness", "gamma", "base", "targets", "ridge", "jitter", "tolerance",
    "step", "optimiser", "t", "steps", "relative_train_mse", "seeds", "members_scored", "members", "unfinished",
)  # fmt: skip
MAIN_SCORES = (
    "network/test_error",
    *(f"{predictor}/{metric}" for predictor in PREDICTORS for metric in ("r2", "skill")),
    "laplace/skill",
    "agop_laplace/skill",
    "labels/r2",
    "network/r2",
    "after_other_seed/r2",
    "kernel/motion",
    "kernel/distance",
    "kernel/growth",
    "kernel/initial_to_infinite",
    "alignment/infinite_ntk/over_chance",
    "alignment/initial/over_chance",
    "alignment/after/over_chance",
)
_CELL = ("name", "task", "model", "width", "richness", "status")
FLAGGED = "done*"
_LONGEST = 16  # of a task's or model's name in the terminal


def text_table(records: Iterable[Record]) -> str:
    """The table for a terminal: a row a cell, by task, model, width and richness.

    ``value±error`` with the error over the seeds, whose number is the last column. Notes below say what is not plain.
    """
    ordered = sorted(records, key=cell_order)
    if not ordered:
        return "no finished cell yet"
    top = ["", "", "", "", "", "network", *_over(PREDICTORS), "floor", "labels", "kernel", ""]
    head = ["task", "model", "width", "rich", "status", "test err", *["R2", "skill"] * 3, "skill", "R2", "motion", "n"]
    table = [top, head, *(_text_row(record) for record in ordered)]
    sizes = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  ".join(_aligned(cell, size, i) for i, (cell, size) in enumerate(zip(row, sizes, strict=True))).rstrip()
             for row in table]  # fmt: skip
    lines.insert(2, "-" * max(len(line) for line in lines))
    notes = [
        "after, initial: regression with the networks' kernel after and before training; lazy: the infinite-width NTK.",
        "skill: 0 is knowing the clean labels, 1 is the trained network; ±: one standard error over n networks.",
    ]
    if any(_status(record) == FLAGGED for record in ordered):
        notes.append("done*: what is left of the training error shows in R2; a smaller tolerance would give a verdict.")
    if any(record.card.get("seeds", {}).get("data") == 1 for record in ordered):
        notes.append("With a single data draw ± is over the inits on it, and says nothing of other draws.")
    notes += [f"not available: {sentence}" for sentence in unavailable(ordered)]
    return "\n".join([*lines, *notes])


def main_csv(records: Iterable[Record]) -> str:
    """A row a cell: its card, then every main score with its standard error and n. Empty where there is none."""
    ordered = sorted(records, key=cell_order)
    extra = sorted({key for record in ordered for key in record.card} - set(CARD))
    columns = ["name", "status", "reason", *CARD, *extra]
    columns += [f"{name}{suffix}" for name in MAIN_SCORES for suffix in ("", "_standard_error", "_n")]
    rows = []
    for record in ordered:
        row = [record.name, record.status, record.reason, *(_card_value(record.card, key) for key in [*CARD, *extra])]
        for name in MAIN_SCORES:
            score = record.score(name)
            row += ["", "", ""] if score is None else [_cell(score.value), _cell(score.standard_error), score.n_seeds]
        rows.append(row)
    return _csv(columns, rows)


def scores_csv(records: Iterable[Record]) -> str:
    """Every score of every cell, a row each."""
    columns = [*_CELL, "score", "value", "standard_error", "n_seeds", "ceiling", "floor"]
    rows = []
    for record in sorted(records, key=cell_order):
        cell = [
            record.name,
            *(_card_value(record.card, k) for k in ("task", "model", "width", "richness")),
            record.status,
        ]
        rows += [
            [*cell, s.name, _cell(s.value), _cell(s.standard_error), s.n_seeds, _cell(s.ceiling), _cell(s.floor)]
            for s in record.scores
        ]
    return _csv(columns, rows)


def main_tex(records: Iterable[Record]) -> str:
    """The main table for a paper (package ``booktabs``); errors are standard errors over the seeds of column n."""
    ordered = sorted(records, key=cell_order)
    over = " & ".join(rf"\multicolumn{{2}}{{c}}{{{NAMES[predictor]}}}" for predictor in PREDICTORS)
    rules = "".join(rf"\cmidrule(lr){{{6 + 2 * i}-{7 + 2 * i}}}" for i in range(len(PREDICTORS)))
    scores = " & ".join(["$R^2$ & skill"] * len(PREDICTORS))
    lines = [
        rf"\begin{{tabular}}{{llrrr{'rr' * len(PREDICTORS)}rrrr}}",
        r"\toprule",
        rf" & & & & & {over} & floor & labels & kernel & \\",
        rules,
        rf"task & model & width & richness & test error & {scores} & skill & $R^2$ & motion & $n$ \\",
        r"\midrule",
        *(" & ".join(_tex_row(record)) + r" \\" for record in ordered),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def seeds_of(record: Record) -> str:
    """How many networks were scored: one number, or a range where scores differ in it."""
    return counts(record.score(name) for name in MAIN_SCORES)


def counts(scores: Iterable[Score | None]) -> str:
    """The number of seeds of these scores: one number, or a range; "–" without a score."""
    numbers = {score.n_seeds for score in scores if score is not None}
    if not numbers:
        return ABSENT
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)}-{max(numbers)}"


def _over(predictors: Iterable[str]) -> list[str]:
    short = {"after": "after", "initial": "initial", "infinite_ntk": "lazy"}
    return [cell for predictor in predictors for cell in (short[predictor], "")]


def _text_row(record: Record) -> list[str]:
    names = [f"{predictor}/{metric}" for predictor in PREDICTORS for metric in ("r2", "skill")]
    card, floor = record.card, bare(number(floor_skill(record)))
    return [
        _clipped(card.get("task")),
        _clipped(model_label(record)),
        width_label(width_of(record)),
        richness_label(card.get("richness")),
        _status(record),
        compact(record.score("network/test_error")),
        *(compact(record.score(name)) for name in names),
        floor,
        compact(record.score("labels/r2")).split("±")[0],
        compact(record.score("kernel/motion")),
        seeds_of(record),
    ]


def _status(record: Record) -> str:
    return FLAGGED if record.status == "done" and record.card.get("unfinished") else record.status


def _aligned(cell: str, size: int, column: int) -> str:
    return cell.ljust(size) if column < 2 or column == 4 else cell.rjust(size)


def _clipped(name: Any) -> str:
    text = ABSENT if name is None else str(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _tex_row(record: Record) -> list[str]:
    names = [f"{predictor}/{metric}" for predictor in PREDICTORS for metric in ("r2", "skill")]
    card = record.card
    return [
        _tex_text(card.get("task", "")),
        _tex_text(model_label(record)),
        _tex_text(width_label(width_of(record))),
        _tex_text(richness_label(card.get("richness"))),
        _tex_score(record.score("network/test_error")),
        *(_tex_score(record.score(name)) for name in names),
        _tex_number(floor_skill(record)),
        _tex_score(record.score("labels/r2")),
        _tex_score(record.score("kernel/motion")),
        _tex_text(seeds_of(record)),
    ]


def _tex_score(score: Score | None) -> str:
    if score is None or not math.isfinite(score.value):
        return "--"
    error = f" \\pm {_tex_digits(error_of(score))}" if math.isfinite(score.standard_error) else ""
    return f"${_tex_digits(number(score.value, score.standard_error))}{error}$"


def _tex_number(value: float) -> str:
    return f"${_tex_digits(number(value))}$" if math.isfinite(value) else "--"


def _tex_digits(text: str) -> str:
    """``1.2e-5`` as LaTeX writes it."""
    mantissa, power, exponent = text.partition("e")
    return rf"{mantissa} \cdot 10^{{{exponent}}}" if power else text


def _tex_text(value: Any) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    special |= {character: "\\" + character for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in str(value))


def _card_value(card: Mapping[str, Any], key: str) -> Any:
    value = plain(card.get(key))
    if value is None:
        return ""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _csv(columns: list[str], rows: Iterable[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()
