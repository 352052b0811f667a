"""All there is about each cell: its card, every score, what could not be measured, and where it ran."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from bench.record import Record
from bench.report import markup
from bench.report.formats import measured, number
from bench.report.studies import cell_label
from bench.report.tables import CARD
from bench.store import plain


def cards(records: Iterable[Record], environments: Mapping[str, Mapping[str, Any]]) -> str:
    """A folded block a cell."""
    return "".join(_card(record, environments.get(record.name, {})) for record in records)


def split_of_time(environment: Mapping[str, Any]) -> str:
    """``training 62%, kernels 30%``; empty where the run did not say."""
    split = environment.get("split")
    if not isinstance(split, Mapping):
        return ""
    seconds = {str(k): float(v) for k, v in split.items() if isinstance(v, int | float) and v > 0}
    total = sum(seconds.values())
    return ", ".join(f"{name} {100 * value / total:.0f}% ({value:.3g} s)" for name, value in seconds.items())


def _card(record: Record, environment: Mapping[str, Any]) -> str:
    ordered = [key for key in CARD if key in record.card] + sorted(set(record.card) - set(CARD))
    body = markup.pairs({key: _written(record.card[key]) for key in ordered}) if ordered else ""
    if record.scores:
        rows = [(escape(s.name), measured(s), number(s.ceiling), number(s.floor)) for s in record.scores]
        body += markup.table(("score", "value", "ceiling", "floor"), rows, text=(0,))
    body += markup.listing(f"{name}: {sentence}" for name, sentence in record.unavailable.items())
    if environment:
        shown = {key: _written(value) for key, value in environment.items() if key != "split"}
        if split := split_of_time(environment):
            shown["split of time"] = split
        body += markup.pairs(shown)
    status = record.status + (f": {record.reason}" if record.reason else "")
    return markup.details(f"<b>{escape(record.name)}</b> ({escape(cell_label(record))}; {escape(status)})", body)


def _written(value: Any) -> str:
    value = plain(value)
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, sort_keys=True)
