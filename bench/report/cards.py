"""All there is about each cell: its card, every score, what could not be measured, and where it ran."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from bench.record import Record
from bench.report import markup
from bench.report.formats import ABSENT, bare, compact, measured, number
from bench.report.studies import cell_label
from bench.report.tables import CARD, counts
from bench.report.verdicts import cell_sentence, unavailable
from bench.store import plain

MEANINGS = {
    "n_train": "N, training points",
    "label_noise": "variance, on the training labels only",
    "gamma": "output scale: the network is (z - z_0)/gamma; kernels are of z",
    "base": "where the regressions start: the network's own outputs at init, or zero",
    "targets": "what the regressions are fitted to: y, the training labels; self, the network's outputs on them",
    "ridge": "added to the kernel of the regressions",
    "jitter": "of the solves, in units of the kernel's mean diagonal",
    "tolerance": "relative train MSE, |f - y|²/|y|², at which a network is finished",
    "step": "in units of 1/(largest eigenvalue of K_t/N)",
    "t": "time, the sum of the steps; mean over the networks",
    "steps": "mean over the networks",
    "relative_train_mse": "reached, mean over the networks",
    "seeds": "nested: errors count the inits within the data draws",
    "members_scored": "networks that reached the tolerance",
    "members": "networks that were trained",
    "unfinished": "whether regressions on y and on the network's own outputs still differ",
}


METRICS = {
    "r2": "R2",
    "skill": "skill",
    "relative_l2": "relative L2",
    "error_correlation": "error correlation",
    "class_agreement": "class agreement",
    "test_error": "test error",
    "class_error": "class error",
}


def cards(records: Iterable[Record], environments: Mapping[str, Mapping[str, Any]]) -> str:
    """A block a cell, folded unless it is the only one."""
    records = tuple(records)
    return "".join(_card(one, environments.get(one.name, {}), unfolded=len(records) == 1) for one in records)


def split_of_time(environment: Mapping[str, Any]) -> str:
    """``training 62%, kernels 30%``; empty where the run did not say."""
    split = environment.get("split")
    if not isinstance(split, Mapping):
        return ""
    seconds = {str(k): float(v) for k, v in split.items() if isinstance(v, int | float) and v > 0}
    total = sum(seconds.values())
    return ", ".join(f"{name} {100 * value / total:.0f}% ({value:.3g} s)" for name, value in seconds.items())


def _card(record: Record, environment: Mapping[str, Any], unfolded: bool) -> str:
    ordered = [key for key in CARD if key in record.card] + sorted(set(record.card) - set(CARD))
    lines = [(escape(key), escape(_written(record.card[key])), escape(MEANINGS.get(key, ""))) for key in ordered]
    body = markup.paragraph(cell_sentence(record))
    body += markup.table(("", "", ""), lines, text=(0,), long=(1, 2)) if ordered else ""
    body += _predictors(record) + _others(record)
    body += markup.listing(f"not available: {sentence}" for sentence in unavailable([record]))
    if environment:
        shown = {key: _written(value) for key, value in environment.items() if key != "split"}
        if split := split_of_time(environment):
            shown["split of time"] = split
        body += markup.pairs(shown)
    status = record.status + (f": {record.reason}" if record.reason else "")
    return markup.details(
        f"<b>{escape(record.name)}</b> ({escape(cell_label(record))}; {escape(status)})", body, unfolded
    )


def _predictors(record: Record) -> str:
    """A row a predictor, a column a metric."""
    names = list(dict.fromkeys(s.name.rpartition("/")[0] for s in record.scores if _is_metric(s.name)))
    rows = []
    for name in names:
        found = [record.score(f"{name}/{metric}") for metric in METRICS]
        bounds = [
            f"{bare(number(s.ceiling))} / {bare(number(s.floor))}" if s and (s.ceiling, s.floor) != (None, None) else ""
            for s in found[:2]
        ]
        rows.append([escape(name), *(compact(score) for score in found), *bounds, counts(found)])
    head = ("predictor", *METRICS.values(), "R2: ceiling / floor", "skill: ceiling / floor", "n")
    return markup.table(head, rows, text=(0,)) if rows else ""


def _others(record: Record) -> str:
    """The scores that are no predictor's: of the kernel and of the networks."""
    rows = [(escape(s.name), measured(s)) for s in record.scores if not _is_metric(s.name)]
    return markup.table(("", "mean ± error (n)"), rows, text=(0,)) if rows else ""


def _is_metric(name: str) -> bool:
    predictor, _, metric = name.rpartition("/")
    return metric in METRICS and predictor != "network"


def _written(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ABSENT
    if isinstance(value, dict):
        return ", ".join(f"{_written(item)} {key}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_written(item) for item in value)
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, sort_keys=True)
