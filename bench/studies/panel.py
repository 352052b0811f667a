"""What a study's page shows: panels of curves, named in the card so that the report needs nothing but the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bench import store

Kind = Literal["theory", "kernel", "network", "reference"]
"""How a curve is drawn: a line for theory, dots with error bars for what was measured, a thin line as reference."""


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
