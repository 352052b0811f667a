"""The page of a study: its panels, each as a picture and as a table of numbers, from the record alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.record import Record
from bench.report import markup
from bench.report.figures import GRID, bare, fixed_ticks, log_axis, new_figure, styled, svg
from bench.report.formats import ABSENT, measured, number
from bench.store import read_record
from bench.studies.study import FOLDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
REFERENCE = "#999999"
MARKERS = {"kernel": "o", "network": "D", "theory": "_", "reference": "_"}
FEW = 24  # scores that are shown unfolded
FILLED = ("kernel", "network")
NARROW, FLAT = 8, 4  # named points that fit a third of a page, and that fit without turning their names
DODGE = 0.6  # of the distance between named points: how far the curves at one of them spread
_COLUMNS = 3
_LEGEND, _HANDLE, _LETTER = 200, 22, 3.7  # points: width of a legend, of a key's line with its margins, of a letter

Json = Mapping[str, Any]


def study_pages(runs: Path) -> dict[str, str]:
    """File name -> page, for every study below ``runs`` that says what to show: of experiments and of claims."""
    pages = {}
    for folder in sorted((runs / FOLDER).glob("*/record.json")):
        try:
            record = read_record(folder.parent)
        except (ValueError, OSError, KeyError, TypeError):  # damaged, or of another schema: its command makes it again
            continue
        if record.card.get("panels"):
            pages[f"{record.name}.html"] = study_page(record)
    return pages


def study_page(record: Record) -> str:
    """One self-contained page; the same record gives the same bytes."""
    card, panels = record.card, record.card["panels"]
    seconds = f" It took {number(float(card['seconds']))} CPU seconds." if "seconds" in card else ""
    introduction = markup.paragraph(card["text"]) + markup.paragraph(
        "Lines: theory, or a fit. Circles: kernels. Diamonds, dashed: trained networks. Error bars: one standard error "
        "over the seeds, whose number is in brackets in the tables." + seconds
    )
    with styled():
        sections = [("pictures", "Pictures", _pictures(record, panels))]
    sections.append(("numbers", "Numbers", "".join(_table(record, panel) for panel in panels)))
    sections.append(("scores", "Scores", _scores(record)))
    settings = {key: value for key, value in card.items() if key not in ("title", "text", "panels", "seconds")}
    sections.append(("settings", "Settings", markup.pairs(settings)))
    return markup.page(card["title"], sections, introduction)


def text_list(records: Iterable[Record]) -> str:
    """Studies for a terminal: a line each, and one for each of its scores."""
    lines = []
    for record in records:
        reason = f": {record.reason}" if record.reason else ""
        lines.append(f"{record.card.get('title', record.name)}: {record.status}{reason}")
        lines += [f"  {score.name}: {measured(score)}" for score in record.scores]
    return "\n".join(lines)


def _pictures(record: Record, panels: Sequence[Json]) -> str:
    pieces = []
    whole = _colours(panels)
    columns = 1 if max(len(panel.get("ticks", ())) for panel in panels) > NARROW else _COLUMNS
    for first in range(0, len(panels), columns):
        some = panels[first : first + columns]
        named = any(panel.get("ticks") for panel in some)
        figure = new_figure(3.6 * len(some) + 0.3 if columns > 1 else 7.5, 3.5 if named else 3.0)
        axes = figure.subplots(1, len(some), squeeze=False)[0]
        rows = [
            _draw(one, record, panel, whole if len(whole) <= len(COLOURS) else _colours([panel]))
            for one, panel in zip(axes, some, strict=True)
        ]
        for one in axes:  # all titles of the row above the highest legend
            one.set_title(one.get_title(loc="left"), loc="left", pad=6 + 9 * max(rows))
        figure.tight_layout()
        pieces.append(svg(figure))
    return "".join(pieces)


def _colours(panels: Sequence[Json]) -> dict[str, str]:
    """Label -> colour."""
    labels = dict.fromkeys(curve["label"] for panel in panels for curve in panel["curves"] if not _grey(curve))
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def _grey(curve: Json) -> bool:
    return bool(curve["kind"] == "reference")


def _draw(axes: Axes, record: Record, panel: Json, colours: Mapping[str, str]) -> int:
    """The rows of its legend."""
    x = np.asarray(record.arrays[panel["x"]], dtype=np.float64)
    keys = {curve["label"]: REFERENCE if _grey(curve) else colours[curve["label"]] for curve in panel["curves"]}
    seen: list[np.ndarray] = []
    named = panel.get("ticks", ())
    places = np.log10(x) if panel["log_x"] else x
    for i, curve in enumerate(panel["curves"]):
        mean, error, _ = _values(record, curve)
        if panel["log_y"]:
            with np.errstate(divide="ignore", invalid="ignore"):
                error = error / (np.log(10) * np.abs(mean))
                mean = np.where(mean > 0, np.log10(np.abs(mean)), np.nan)
        seen += [mean - error, mean + error]
        colour = keys[curve["label"]]
        if named:
            share = (i + 0.5) / len(panel["curves"]) - 0.5
            _dots(axes, curve["kind"], places + DODGE * share, mean, error, colour, joined=False)
        elif curve["kind"] in ("theory", "fit", "reference"):
            axes.plot(places, mean, color=colour, linewidth=0.8 if _grey(curve) else 1.3)
        else:
            _dots(axes, curve["kind"], places, mean, error, colour, joined=curve["kind"] == "network")
    bare(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title(panel["title"], loc="left")
    axes.set_xlabel("" if named else panel["x_label"])
    axes.set_ylabel(panel["y_label"])
    if named:
        axes.set_xlim(-0.6, len(named) - 0.4)
        fixed_ticks(axes.xaxis, places, named)
        if len(named) > FLAT:
            for label in axes.get_xticklabels():
                label.set(rotation=45, rotation_mode="anchor", horizontalalignment="right")
    else:
        _ticks(axes.xaxis, places, panel["log_x"])
    _ticks(axes.yaxis, np.concatenate(seen), panel["log_y"])
    return _legend(axes, keys) if len(keys) > 1 else 0


def _legend(axes: Axes, keys: Mapping[str, str]) -> int:
    """Between title and axes, where no curve is: in as many columns as fit. The number of its rows."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=1.5) for colour in keys.values()]
    columns = max(1, min(len(keys), int(_LEGEND // (_HANDLE + _LETTER * max(len(label) for label in keys)))))
    axes.legend(lines, list(keys), loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=6.5, frameon=False,
                handlelength=1.2, labelspacing=0.25, columnspacing=1.2, borderpad=0, borderaxespad=0.4)  # fmt: skip
    return -(-len(keys) // columns)


def _dots(
    axes: Axes, kind: str, places: np.ndarray, mean: np.ndarray, error: np.ndarray, colour: str, joined: bool
) -> None:
    axes.plot(places, mean, color=colour, marker=MARKERS[kind], markersize=3.2 if kind in FILLED else 7,
              linestyle="dashed" if joined else "none", linewidth=0.7,
              markerfacecolor="white" if kind == "network" else colour)  # fmt: skip
    axes.vlines(places, mean - error, mean + error, color=colour, linewidth=0.9)


def _ticks(axis: Any, values: np.ndarray, logarithmic: bool) -> None:
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() == finite.max():
        return
    if logarithmic:
        log_axis(axis, float(finite.min()), float(finite.max()), enough=3)
        return
    from matplotlib.ticker import MaxNLocator

    whole = bool((finite == finite.round()).all())  # a degree, a level, a step: no ticks between
    ticks = MaxNLocator(5, integer=whole).tick_values(float(finite.min()), float(finite.max()))
    fixed_ticks(axis, ticks, [f"{tick:g}" for tick in np.round(ticks, 10)])


def _table(record: Record, panel: Json) -> str:
    x = np.asarray(record.arrays[panel["x"]], dtype=np.float64)
    columns = [_values(record, curve) for curve in panel["curves"]]
    rows = []
    named = panel.get("ticks", ())
    for i in range(len(x)) if named else np.argsort(x, kind="stable"):
        cells = []
        for mean, error, count in columns:
            text = number(float(mean[i]), float(error[i]))
            if count > 1 and text != ABSENT:
                text += f" ± {number(float(error[i]), float(error[i]))} ({count})"
            cells.append(text)
        rows.append([escape(named[i]) if named else f"{x[i]:g}", *cells])
    kinds = {"theory": "theory", "fit": "fit", "kernel": "kernel", "network": "network", "reference": "reference"}
    head = [escape(panel["x_label"]), *(f"{escape(c['label'])}, {kinds[c['kind']]}" for c in panel["curves"])]
    left = (0,) if named else ()
    return f"<h3>{escape(panel['title'])}: {escape(panel['y_label'])}</h3>\n" + markup.table(head, rows, text=left)


def _scores(record: Record) -> str:
    rows = [(escape(score.name), measured(score)) for score in record.scores]
    table = markup.table(("score", "mean ± standard error (seeds)"), rows, text=(0,))
    return markup.details(f"{len(rows)} scores", table, unfolded=len(rows) <= FEW) if rows else ""


def _values(record: Record, curve: Json) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean over seeds, its standard error (0 for a single one) and their number."""
    values = np.asarray(record.arrays[curve["array"]], dtype=np.float64)[(slice(None), *curve["at"])]
    count = len(values)
    error = values.std(0, ddof=1) / count**0.5 if count > 1 else np.zeros_like(values[0])
    return values.mean(0), error, count
