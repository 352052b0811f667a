"""Which cells belong together: the same card but for width and richness, and the order in which they are shown."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.record import Record
from bench.report.formats import ABSENT
from bench.store import plain

# What may differ within one study: the two axes of the sweep, and what follows from them.
VARIED = frozenset(
    ("width", "richness", "gamma", "parameters", "t", "steps", "relative_train_mse", "members", "members_scored",
     "unfinished")
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Cells whose cards differ in width and richness only, in the order of the tables.

    Attributes:
        title: task and model, and what tells this study from others of the same task and model.
        records: its cells.
    """

    title: str
    records: tuple[Record, ...]

    @property
    def task(self) -> str:
        return str(self.records[0].card.get("task", "?"))

    @property
    def widths(self) -> list[float]:
        """Distinct widths, ascending; cells without one are left out."""
        return sorted({width for record in self.records if math.isfinite(width := width_of(record))})

    @property
    def richnesses(self) -> list[Any]:
        """Distinct richness values, "ntk" first."""
        distinct = {richness_label(r.card.get("richness")): r.card.get("richness") for r in self.records}
        return sorted(distinct.values(), key=richness_order)

    def at(self, richness: Any) -> list[Record]:
        """Its cells of that richness, narrowest first."""
        label = richness_label(richness)
        return [r for r in self.records if richness_label(r.card.get("richness")) == label]


def studies(records: Iterable[Record]) -> list[Study]:
    """The studies, in the order in which their first cell appears in the tables."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=cell_order):
        groups[_shared_card(record)].append(record)
    names = [_task_and_model(members[0]) for members in groups.values()]
    cards = [json.loads(key) for key in groups]
    titles = []
    for name, card in zip(names, cards, strict=True):
        rivals = [other for other_name, other in zip(names, cards, strict=True) if other_name == name]
        differing = sorted({k for other in rivals for k in {*card, *other} if other.get(k) != card.get(k)})
        detail = ", ".join(f"{key} {_short(card.get(key))}" for key in differing)
        titles.append(f"{name} ({detail})" if detail else name)
    return [Study(title, tuple(members)) for title, members in zip(titles, groups.values(), strict=True)]


def cell_order(record: Record) -> tuple[Any, ...]:
    """Sort key: task, model, width, richness ("ntk" first), then the name."""
    card = record.card
    width = width_of(record)
    order = (math.inf if math.isnan(width) else width, richness_order(card.get("richness")))
    return (str(card.get("task", "")), str(card.get("model", "")), *order, record.name)


def width_of(record: Record) -> float:
    """nan where the card has none."""
    try:
        return float(record.card.get("width"))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def richness_order(richness: Any) -> tuple[int, float]:
    """Sort key: "ntk", then numbers, then what is neither."""
    if richness == "ntk":
        return 0, 0.0
    try:
        return 1, float(richness)
    except (TypeError, ValueError):
        return 2, 0.0


def richness_label(richness: Any) -> str:
    kind, value = richness_order(richness)
    return f"{value:g}" if kind == 1 else ABSENT if richness is None else str(richness)


def model_label(record: Record) -> str:
    """The model, and how it reads out where that is a choice."""
    named = [record.card.get(key) for key in ("model", "readout")]
    return " ".join(str(name) for name in named if name is not None) or ABSENT


def width_label(width: float) -> str:
    return f"{width:.10g}" if math.isfinite(width) else ABSENT


def cell_label(record: Record) -> str:
    """Within a study: width and richness."""
    return ", ".join(cell_parts(record))


def cell_parts(record: Record) -> list[str]:
    """``width 64`` and ``richness 1``; a checkpoint of anybody's has no richness."""
    richness = record.card.get("richness")
    return [f"width {width_label(width_of(record))}"] + [f"richness {richness_label(richness)}"] * (
        richness is not None
    )


def array(record: Record, name: str) -> np.ndarray | None:
    """A record's array in float64, or None where it is absent or empty."""
    values = record.arrays.get(name)
    return None if values is None or values.size == 0 else np.asarray(values, dtype=np.float64)


def rows(record: Record, name: str) -> np.ndarray | None:
    """A curve per member, [m, points], or None."""
    values = array(record, name)
    return None if values is None else np.atleast_2d(values)


def _shared_card(record: Record) -> str:
    shared = {key: value for key, value in record.card.items() if key not in VARIED}
    return json.dumps(plain(shared), sort_keys=True)


def _task_and_model(record: Record) -> str:
    parts = [str(record.card[key]) for key in ("task", "model") if key in record.card]
    return ", ".join(parts) or record.name


def _short(value: Any) -> str:
    return "none" if value is None else json.dumps(value).replace('"', "").strip("{}")
