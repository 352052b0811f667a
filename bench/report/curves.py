"""While the networks train: regression with the kernel of the moment, and how that kernel moves, against the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.record import Record
from bench.report.figures import COLOURS, decades, fixed_ticks, log_axis, power_of_ten, skill_axis, symmetric
from bench.report.strips import Line, chunks, draw_lines, limits, panel_ticks, strip_figure
from bench.report.studies import Study, cell_parts, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHTS = (1.25, 0.95, 0.95, 0.95)


def draw(study: Study) -> Iterator[Figure]:
    """Figures of at most nine cells each: a column a cell, a line a member."""
    cells = [record for record in study.records if rows(record, "snapshot_loss") is not None]
    for some in chunks(cells) if cells else ():
        low, high = _loss_range(some)
        if math.isfinite(low):
            yield _figure(some, low, high)


def cell_title(record: Record) -> str:
    return "\n".join(cell_parts(record))


def _figure(cells: Sequence[Record], low: float, high: float) -> Figure:
    figure, axes = strip_figure([cell_title(record) for record in cells], _HEIGHTS)

    def lines(name: str, scale: str = "") -> list[Line]:
        return [line for i, record in enumerate(cells) for line in _lines(record, i, name, scale, low, high)]

    skill_axis(axes[0])
    axes[0].set_ylabel("R2, skill")
    draw_lines(axes[0], lines("snapshot_r2", "skill"), COLOURS["after"], (0, (2, 1.2)))
    draw_lines(axes[0], lines("snapshot_skill", "skill"), COLOURS["after"])
    errors = {COLOURS["network"]: lines("snapshot_network_test_error", "log"),
              COLOURS["initial"]: lines("snapshot_linearised_test_error", "log"),
              COLOURS["after"]: lines("snapshot_test_error", "log")}  # fmt: skip
    _log_row(axes[1], "test error", [line for some in errors.values() for line in some])
    for colour, some in errors.items():
        draw_lines(axes[1], some, colour)
    motion = lines("snapshot_motion", "log")
    _log_row(axes[2], "motion", motion)
    draw_lines(axes[2], motion, COLOURS["kernel"])
    axes[3].set_ylim(-0.05, 1.05)
    fixed_ticks(axes[3].yaxis, (0, 0.5, 1), ("0", ".5", "1"))
    axes[3].set_ylabel("distance,\nalignment")
    draw_lines(axes[3], lines("snapshot_distance"), COLOURS["kernel"])
    draw_lines(axes[3], lines("snapshot_alignment"), COLOURS["kernel"], (0, (2, 1.2)))
    draw_lines(axes[3], lines("snapshot_alignment_held_out"), COLOURS["kernel"], (0, (0.8, 1)))
    exponents = decades(low, high, most=3)[::-1]
    panel_ticks(
        axes[3], len(cells), [(high - e) / (high - low) for e in exponents], [power_of_ten(e) for e in exponents]
    )
    axes[3].set_xlabel("relative train loss: training goes to the right", labelpad=2, loc="left")
    return figure


def _log_row(axes: Axes, label: str, lines: list[Line]) -> None:
    low, high = limits(lines) or (-1.0, 0.0)
    axes.set_ylim(low, high)
    log_axis(axes.yaxis, low, high)
    axes.set_ylabel(label)


def _loss_range(cells: Sequence[Record]) -> tuple[float, float]:
    """log10 of the lowest and highest loss of these cells; nan where there is none."""
    values = np.concatenate([found.ravel() for r in cells if (found := rows(r, "snapshot_loss")) is not None])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0:
        return math.nan, math.nan
    low, high = math.log10(values.min()), max(0.0, math.log10(values.max()))
    return min(low, high - 0.5), high


def _lines(record: Record, panel: int, name: str, scale: str, low: float, high: float) -> Iterator[Line]:
    loss, values = rows(record, "snapshot_loss"), rows(record, name)
    if loss is None or values is None or loss.shape != values.shape:
        return
    for member_loss, member in zip(loss, values, strict=True):
        positive = member_loss > 0
        x = (high - np.log10(member_loss[positive])) / (high - low)
        y = member[positive]
        if scale == "skill":
            y = symmetric(y)
        elif scale == "log":
            y = np.log10(np.where(y > 0, y, math.nan))
        yield Line(panel, x, y)
