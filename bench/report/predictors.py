"""One cell, a line a predictor: every measure of its match, and the verdict."""

from __future__ import annotations

from bench.record import Record
from bench.report.formats import compact
from bench.report.verdicts import NAMES, verdict

COLUMNS = {
    "r2": "R2", "skill": "skill", "relative_l2": "rel. L2", "error_correlation": "error corr.",
    "class_agreement": "class agr.", "test_error": "test err",
}  # fmt: skip
_SHOWN = ("after", "initial", "infinite_ntk", "infinite_nngp", "features", "linearised", "laplace", "agop_laplace",
          "labels")  # fmt: skip


def predictor_table(record: Record) -> str:
    """The table for a terminal; ``value±error`` with the error over the seeds. Rivals get no verdict."""
    rows = [["predictor", *COLUMNS.values(), "verdict"]]
    for predictor in _SHOWN:
        scores = [record.score(f"{predictor}/{metric}") for metric in COLUMNS]
        if any(score is not None for score in scores):
            rival = predictor in ("laplace", "agop_laplace", "labels")
            judged = "a rival" if rival else verdict(record, predictor).kind.replace("none", "no verdict")
            rows.append([NAMES[predictor], *(compact(score) for score in scores), judged])
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(size) if i == 0 else text.rjust(size)
            for i, (text, size) in enumerate(zip(row, sizes, strict=True))
        )
        for row in rows
    )
