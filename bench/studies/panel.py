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
    """

    title: str
    x: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


def page(title: str, text: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """What a study adds to its card: the heading of its page, what one sees there, and the panels."""
    return {"title": title, "text": text, "panels": store.plain(panels)}


def gap(name: str, measured: np.ndarray, expected: np.ndarray) -> Score:
    """The mean distance of two curves, [seeds, ...] and [seeds or 1, ...]; nan where a seed has no value."""
    distances = np.abs(measured - expected).reshape(len(measured), -1)
    return summarise(f"{name}/mean distance", list(distances.mean(1)), list(range(len(distances))))
