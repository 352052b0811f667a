"""The picture of the main result: skill of three theories against richness, a panel a study."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.record import Record
from bench.report.figures import COLOURS, STYLE, bare, fixed_ticks, new_figure, skill_axis, symmetric
from bench.report.studies import Study, richness_label, studies, width_label, width_of
from bench.report.verdicts import NAMES, PREDICTORS, flag
from bench.store import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_MARKERS = "osD^v<>p"


def main_picture(records: Iterable[Record], out_file: Path) -> None:
    """Draw skill against richness and write it, as PNG or SVG by the suffix.

    Args:
        records: of any number of studies; cells without a skill are left out.
        out_file: ends in ``.png`` or ``.svg``.

    Raises:
        ValueError: another suffix, or no cell has a skill.
    """
    kind = out_file.suffix.lstrip(".").lower()
    if kind not in ("png", "svg"):
        raise ValueError(f"A picture is written as .png or .svg, not as '{out_file.name}'.")
    shown = with_skill(studies(records))
    if not shown:
        raise ValueError("No cell has a skill to draw: after/skill, initial/skill and infinite_ntk/skill are missing.")
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path"}):  # seen on machines with other fonts, too
        figure = draw(shown)
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata, facecolor="white")
    write_bytes(out_file, buffer.getvalue())


def draw(shown: list[Study]) -> Figure:
    """A panel a study, with a legend of predictors (colours) and widths (lines)."""
    columns = min(_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    widths = sorted({width for study in shown for width in study.widths})
    handles = _handles(shown, widths)
    width = max(5.2, 0.6 + 3.1 * columns)
    keys = math.ceil(len(handles) / (width // 1.1))  # lines of the legend, an entry of which is 1.1 inches
    bottom = 0.6 + 0.17 * keys
    height = bottom + 0.05 + 2.7 * lines
    figure = new_figure(width, height)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=False)
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.12 / width, bottom=bottom / height, top=1 - 0.45 / height,
                           wspace=0.16, hspace=0.4)  # fmt: skip
    for i, panel in enumerate(axes.flat):
        if i < len(shown):
            _panel(panel, shown[i], widths, first=i % columns == 0)
        else:
            panel.set_axis_off()
    figure.legend(
        handles=handles, loc="lower center", ncols=math.ceil(len(handles) / keys), frameon=False, fontsize=7.5
    )
    return figure


def with_skill(found: Iterable[Study]) -> list[Study]:
    """The studies that have anything to draw."""
    return [study for study in found if _has_skill(study)]


def _has_skill(study: Study) -> bool:
    scores = [record.score(f"{predictor}/skill") for record in study.records for predictor in PREDICTORS]
    return any(score is not None and math.isfinite(score.value) for score in scores)


def _panel(axes: Axes, study: Study, widths: list[float], first: bool) -> None:
    bare(axes)
    skill_axis(axes)
    columns = [richness_label(richness) for richness in study.richnesses]
    axes.set_xlim(-0.4, len(columns) - 0.6)
    fixed_ticks(axes.xaxis, range(len(columns)), columns)
    axes.set_title(_title(study), loc="left", linespacing=1.1)
    axes.set_xlabel("richness")
    if first:
        axes.set_ylabel("skill")
    for predictor in PREDICTORS:
        for width in study.widths:
            _line(axes, study, predictor, width, columns, _look(widths, width))


def _title(study: Study) -> str:
    """What fits above a panel: the name, and what tells it from others below."""
    name, bracket, detail = study.title.partition(" (")
    return name + (f"\n{textwrap.shorten(bracket.strip() + detail, 46, placeholder=' …')}" if detail else "")


def _line(axes: Axes, study: Study, predictor: str, width: float, columns: list[str], look: dict[str, Any]) -> None:
    points = []
    shift = look["shift"] + 0.025 * (PREDICTORS.index(predictor) - 1)  # so that error bars do not hide each other
    for record in study.records:
        score = record.score(f"{predictor}/skill")
        if width_of(record) == width and score is not None and math.isfinite(score.value):
            error = score.standard_error if math.isfinite(score.standard_error) else 0.0
            x = columns.index(richness_label(record.card.get("richness"))) + shift
            points.append((x, score.value - error, score.value, score.value + error, bool(flag(record))))
    if not points:
        return
    x, low, middle, high, flagged = np.array(sorted(points)).T
    low, middle, high = symmetric(low), symmetric(middle), symmetric(high)
    colour, alpha = COLOURS[predictor], look["alpha"]
    axes.vlines(x, low, high, color=colour, alpha=alpha, linewidth=1)
    axes.plot(x, middle, color=colour, alpha=alpha, linewidth=look["linewidth"], marker=look["marker"], markersize=3.2)
    hollow = flagged > 0
    axes.plot(x[hollow], middle[hollow], color=colour, linestyle="none", marker=look["marker"], markersize=3.2,
              markerfacecolor="white")  # fmt: skip


def _look(widths: list[float], width: float) -> dict[str, Any]:
    """Wider networks are drawn stronger; each width has a marker."""
    i, last = widths.index(width), max(len(widths) - 1, 1)
    part = i / last if len(widths) > 1 else 1.0
    return {
        "alpha": 0.4 + 0.6 * part,
        "linewidth": 0.7 + 0.8 * part,
        "marker": _MARKERS[i % len(_MARKERS)],
        "shift": 0.16 * (part - 0.5) if len(widths) > 1 else 0.0,
    }


def _handles(shown: list[Study], widths: list[float]) -> list[Any]:
    """What the legend names: the predictors that are drawn, the labels, and the widths."""
    from matplotlib.lines import Line2D

    drawn = [p for p in PREDICTORS if any(r.score(f"{p}/skill") for study in shown for r in study.records)]
    handles = [Line2D([], [], color=COLOURS[p], linewidth=2, label=NAMES[p]) for p in drawn]
    handles.append(Line2D([], [], color=COLOURS["labels"], linewidth=0.9, linestyle="dashed", label="the labels"))
    for width in widths:
        look = _look(widths, width)
        handles.append(
            Line2D([], [], color="#444444", alpha=look["alpha"], linewidth=look["linewidth"], marker=look["marker"],
                   markersize=3.2, label=f"width {width_label(width)}")
        )  # fmt: skip
    return handles
