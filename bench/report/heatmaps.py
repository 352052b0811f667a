"""Width against richness: where each theory holds, how far the kernel moved, and the line from lazy to rich."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.record import Score
from bench.report.figures import bare, fixed_ticks, new_figure, symmetric
from bench.report.formats import ABSENT, error_of, number
from bench.report.formats import bare as bare_number
from bench.report.studies import Study, richness_label, richness_order, width_label, width_of
from bench.report.verdicts import flag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# score -> title, colour map, scale
PANELS = {
    "after/skill": ("skill: after kernel", "RdBu", "skill"),
    "initial/skill": ("skill: initial kernel", "RdBu", "skill"),
    "infinite_ntk/skill": ("skill: lazy theory", "RdBu", "skill"),
    "kernel/motion": ("kernel motion", "cividis", "log"),
    "network/test_error": ("test error of network", "cividis_r", "log"),
}
_CELL = 0.62  # inches
_TITLE = 1.45  # inches that the longest title needs
_PAGE = 13.5


def grid(study: Study, name: str) -> list[list[Score | None]]:
    """The score of every width (rows, ascending) and richness (columns, "ntk" first)."""
    table: list[list[Score | None]] = [[None] * len(study.richnesses) for _ in study.widths]
    columns = [richness_label(richness) for richness in study.richnesses]
    for record in study.records:
        score = record.score(name)
        if math.isfinite(width_of(record)) and score is not None and math.isfinite(score.value):
            column = columns.index(richness_label(record.card.get("richness")))
            table[study.widths.index(width_of(record))][column] = score
    return table


def transitions(richness: Sequence[float], motion: Sequence[float], level: float = 1.0) -> list[float]:
    """The richness at which the kernel motion crosses ``level``, interpolated in logarithms; empty if it does not."""
    pairs = sorted((r, m) for r, m in zip(richness, motion, strict=True) if r > 0 and m > 0)
    found = []
    for (r1, m1), (r2, m2) in itertools.pairwise(pairs):
        before, after = math.log(m1 / level), math.log(m2 / level)
        if (before < 0) != (after < 0):
            found.append(math.exp(math.log(r1) + math.log(r2 / r1) * before / (before - after)))
    return found


def transition_table(study: Study) -> list[tuple[float, list[float]]]:
    """A width and the richness values at which its kernel motion crosses 1; "ntk" is 1/sqrt(width)."""
    table = []
    for width, row in zip(study.widths, grid(study, "kernel/motion"), strict=True):
        points = [
            (width**-0.5 if richness == "ntk" else float(richness), score.value)
            for richness, score in zip(study.richnesses, row, strict=True)
            if score is not None and richness_order(richness)[0] < 2
        ]
        if found := transitions([r for r, _ in points], [m for _, m in points]):
            table.append((width, found))
    return table


def draw(study: Study) -> Figure | None:
    """The five maps of a study in one figure; None where it has a single place on the map, or none of these scores."""
    names = [name for name in PANELS if any(s is not None for row in grid(study, name) for s in row)]
    if not names or len(study.widths) * len(study.richnesses) < 2:
        return None
    wide, tall = _CELL * len(study.richnesses), 0.5 * len(study.widths)
    pitch = max(wide + 0.3, _TITLE)
    columns = max(1, min(len(names), int((_PAGE - 0.5) // pitch)))
    lines = math.ceil(len(names) / columns)
    width, height = 0.65 + columns * pitch, lines * (tall + 0.72)
    figure = new_figure(width, height)
    for i, name in enumerate(names):
        left, top = 0.6 + (i % columns) * pitch, height - (i // columns) * (tall + 0.72) - 0.3
        axes = figure.add_axes((left / width, (top - tall) / height, wide / width, tall / height))
        _map(axes, study, name, labelled=i % columns == 0)
    return figure


def _map(axes: Axes, study: Study, name: str, labelled: bool) -> None:
    from matplotlib import colormaps

    title, colours, scale = PANELS[name]
    table, flagged = grid(study, name), _flagged(study)
    shown = _scaled(table, scale)
    low, high = (-1.0, 1.0) if scale == "skill" else _limits(shown)
    colour_map = colormaps[colours]
    axes.pcolormesh(
        np.ma.masked_invalid(shown), cmap=colour_map, vmin=low, vmax=high, edgecolors="white", linewidth=1.5
    )
    for row, scores in enumerate(table):
        for column, score in enumerate(scores):
            part = (shown[row, column] - low) / (high - low)
            mark = "*" if (row, column) in flagged else ""
            _write(axes, row, column, score, mark, colour_map(part if math.isfinite(part) else 0.5))
    bare(axes)
    axes.set_title(title, loc="left", pad=3)
    fixed_ticks(axes.xaxis, np.arange(len(study.richnesses)) + 0.5, [richness_label(r) for r in study.richnesses])
    fixed_ticks(
        axes.yaxis, np.arange(len(study.widths)) + 0.5, [width_label(w) for w in study.widths] * labelled or None
    )
    axes.set_xlabel("richness", labelpad=1)
    if labelled:
        axes.set_ylabel("width", labelpad=1)
    _lazy_to_rich(axes, _scaled(grid(study, "kernel/motion"), "log"))


def is_crossed(study: Study) -> bool:
    """Whether some of its cells are lazy (kernel motion below 1) and some rich."""
    return _crosses(_scaled(grid(study, "kernel/motion"), "log"))


def _flagged(study: Study) -> set[tuple[int, int]]:
    """Row and column of the cells that carry no verdict."""
    columns = [richness_label(richness) for richness in study.richnesses]
    return {
        (study.widths.index(width_of(record)), columns.index(richness_label(record.card.get("richness"))))
        for record in study.records
        if math.isfinite(width_of(record)) and flag(record)
    }


def _crosses(log_motion: np.ndarray) -> bool:
    finite = log_motion[np.isfinite(log_motion)]
    return bool(finite.size and finite.min() < 0 < finite.max())


def _scaled(table: list[list[Score | None]], scale: str) -> np.ndarray:
    values = np.array([[math.nan if score is None else score.value for score in row] for row in table])
    if scale == "skill":
        return symmetric(values)
    return np.log10(np.where(values > 0, values, math.nan))


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _write(axes: Axes, row: int, column: int, score: Score | None, mark: str, colour: Any) -> None:
    if score is None:
        axes.text(column + 0.5, row + 0.5, ABSENT, ha="center", va="center", color="#888888")
        return
    red, green, blue = colour[:3]
    text = bare_number(number(score.value, score.standard_error)) + mark
    if math.isfinite(score.standard_error):
        text += "\n±" + bare_number(error_of(score))
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, linespacing=1.1, zorder=5,
              color="white" if dark else "black",
              bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6})  # fmt: skip


def _lazy_to_rich(axes: Axes, log_motion: np.ndarray) -> None:
    """Where the motion is 1: linear in its logarithm between neighbouring cells, which are a factor apart."""
    if not _crosses(log_motion):
        return
    # Half a cell more on each side, so that the line reaches the edges and a single row or column has one, too.
    y, x = (np.concatenate([[0.0], np.arange(size) + 0.5, [size]]) for size in log_motion.shape)
    values = np.ma.masked_invalid(np.pad(log_motion, 1, mode="edge"))
    for colour, style, width in (("white", "solid", 2.6), ("black", "dashed", 1.4)):  # seen on light and on dark
        axes.contour(x, y, values, levels=[0.0], colors=colour, linestyles=style, linewidths=width)
