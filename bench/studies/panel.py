"""What a study's page shows: panels of curves, named in the card so that the report needs nothing but the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench import store
from bench.record import Score, summarise

Kind = Literal["theory", "fit", "kernel", "network", "reference"]
"""How a curve is drawn: a line for theory or a fit, dots with error bars for what was measured, a thin line as
reference."""

PLACE = "place"


@dataclass(frozen=True)
class Curve:
    """One curve: the mean over the leading (seed) axis of an array of the record, and its standard error.

    Attributes:
        array: its name; [seeds, ...], what is left after ``at`` being one number a point of x. Theory that is the same
            for all seeds has a leading axis of 1.
        at: indices into the axes after that of the seeds.
    """

    label: str
    array: str
    kind: Kind
    at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Curves against one axis.

    Attributes:
        x: the name of the array [points] on the horizontal axis.
        ticks: what the points are called, where they have names instead of values; nothing joins them then.
    """

    title: str
    x: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False
    ticks: tuple[str, ...] = ()


def named_panel(
    title: str, names: tuple[str, ...], y_label: str, curves: tuple[Curve, ...], log_y: bool = False, what: str = ""
) -> Panel:
    """A panel whose points are named things; the record has ``places(names)`` among its arrays.

    Args:
        what: they are, such as "task": the head of the table's first column.
    """
    return Panel(title, PLACE, what, y_label, curves, log_y=log_y, ticks=names)


def places(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The array that ``named_panel`` draws against."""
    return {PLACE: np.arange(len(names))}


def page(title: str, text: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """What a study adds to its card: the heading of its page, what one sees there, and the panels."""
    return {"title": title, "text": text, "panels": store.plain(panels)}


def gap(name: str, measured: np.ndarray, expected: np.ndarray) -> Score:
    """The mean distance of two curves, [seeds, ...] and [seeds or 1, ...], over the points that a seed has."""
    return _mean(f"{name}/mean distance", np.abs(measured - expected))


def relative_gap(name: str, measured: np.ndarray, expected: np.ndarray) -> Score:
    """The mean of ``|measured / expected - 1|`` over the points that were measured, of [seeds, ...] and [1, ...]."""
    return _mean(f"{name}/mean relative distance", np.abs(measured / expected - 1))


def _mean(name: str, distances: np.ndarray) -> Score:
    """Each seed's over the points that it has; nan for one that has none."""
    rows = [row[~np.isnan(row)] for row in distances.reshape(len(distances), -1)]
    return summarise(name, [float(row.mean()) if len(row) else float("nan") for row in rows], list(range(len(rows))))
