"""Many small panels that share a vertical axis, drawn as one: a matplotlib axes a row instead of one a panel.

Twenty-seven cells with four rows each would be a hundred axes, and seconds of ticks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bench.report.figures import GRID, bare, fixed_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 0.24  # between panels, in panel widths: room for the last tick of one beside the first of the next
MOST = 9  # panels in a line

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """A line in one panel: which panel, x in [0, 1] across it, y in the row's units."""

    panel: int
    x: np.ndarray
    y: np.ndarray


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """At most ``MOST`` at a time, in lines of about the same length."""
    count = max(1, math.ceil(len(items) / MOST))
    size = math.ceil(len(items) / count)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def strip_figure(titles: Sequence[str], heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure with a column a title and a row a height (inches); each row is one axes."""
    pitch = min(2.4, max(1.25, 7 / len(titles)))  # few panels are larger
    width, height = max(0.75 + pitch * len(titles), 3.4), sum(heights) + 0.16 * (len(heights) - 1) + 0.75
    figure = new_figure(width, height)
    top, rows = height - 0.38, []
    for size in heights:
        extent = (pitch * len(titles) - 0.1) / width
        axes = figure.add_axes((0.65 / width, (top - size) / height, extent, size / height))
        _frame(axes, len(titles))
        rows.append(axes)
        top -= size + 0.16
    for i, title in enumerate(titles):
        rows[0].text(i * (1 + GAP) + 0.5, 1.04, title, ha="center", va="bottom", fontsize=7, linespacing=1.2,
                     transform=rows[0].get_xaxis_transform())  # fmt: skip
    return figure, rows


def panel_ticks(axes: Axes, panels: int, positions: Sequence[float], labels: Sequence[str]) -> None:
    """The same ticks below every panel."""
    places = [panel * (1 + GAP) + position for panel in range(panels) for position in positions]
    fixed_ticks(axes.xaxis, places, list(labels) * panels)


def draw_lines(axes: Axes, lines: Sequence[Line], colour: str, style: Any = "solid", width: float = 1.0,
               alpha: float = 0.75) -> None:  # fmt: skip
    """All lines of one kind, in every panel, as one collection."""
    from matplotlib.collections import LineCollection

    kept = []
    for line in lines:
        finite = np.isfinite(line.x) & np.isfinite(line.y)
        if finite.any():
            kept.append(np.column_stack([line.x[finite] + line.panel * (1 + GAP), line.y[finite]]))
    if kept:
        axes.add_collection(
            LineCollection(kept, colors=colour, linestyles=style, linewidths=width, alpha=alpha), autolim=False
        )


def limits(lines: Sequence[Line], margin: float = 0.06) -> tuple[float, float] | None:
    """Lowest and highest y, with a margin; None without a finite point."""
    values = np.concatenate([line.y for line in lines]) if lines else np.empty(0)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    pad = margin * (high - low) or 0.1
    return low - pad, high + pad


def _frame(axes: Axes, panels: int) -> None:
    bare(axes)
    axes.set_xlim(-0.03, panels * (1 + GAP) - GAP + 0.03)
    axes.spines["bottom"].set_visible(False)
    fixed_ticks(axes.xaxis, [])
    for panel in range(panels):
        axes.axvspan(panel * (1 + GAP), panel * (1 + GAP) + 1, color="#f5f5f2", linewidth=0, zorder=0)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
