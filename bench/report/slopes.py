"""The picture of ``widths``: each quantity against the width, with its fitted power law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bench.report.figures import GRID, RICHNESS_COLOURS, bare, fixed_ticks, log_axis, new_figure
from bench.report.studies import Study, richness_label, width_label
from bench.report.widths import QUANTITIES, PowerLaw, power_laws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def richness_colours(study: Study) -> dict[str, str]:
    """Label of a richness -> its colour, the same in all panels; of those that have a fit."""
    fitted = {richness_label(law.richness) for quantity in QUANTITIES for law in power_laws(study, quantity)}
    labels = [label for richness in study.richnesses if (label := richness_label(richness)) in fitted]
    return {label: RICHNESS_COLOURS[i % len(RICHNESS_COLOURS)] for i, label in enumerate(labels)}


def draw(study: Study) -> Figure | None:
    """A panel a quantity, a line a richness; None where no richness has three widths."""
    laws = {quantity: found for quantity in QUANTITIES if (found := power_laws(study, quantity))}
    if not laws:
        return None
    width = 0.5 + 3.0 * len(laws)
    figure = new_figure(width, 2.5)
    for i, (quantity, found) in enumerate(laws.items()):
        axes = figure.add_axes(((0.5 + 3.0 * i) / width, 0.42 / 2.5, 2.45 / width, 1.8 / 2.5))
        axes.set_title(QUANTITIES[quantity], loc="left")
        _panel(axes, found, richness_colours(study))
    return figure


def _panel(axes: Axes, laws: list[PowerLaw], colours: dict[str, str]) -> None:
    bare(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_xlabel("width", labelpad=1)
    heights: list[float] = []
    for law in laws:
        colour = colours[richness_label(law.richness)]
        x = np.log10(law.widths)
        values = np.array([score.value for score in law.scores])
        errors = np.nan_to_num([score.standard_error for score in law.scores])
        low, high = np.log10(np.maximum(values - errors, values / 10)), np.log10(values + errors)
        axes.vlines(x, low, high, color=colour, linewidth=1)
        axes.plot(x, np.log10(values), linestyle="none", marker="o", markersize=3.5, color=colour)
        ends = x[[0, -1]]
        axes.plot(ends, law.slope * ends + law.intercept / math.log(10), color=colour, linewidth=1)
        heights += [*low, *high]
    pad = 0.06 * (max(heights) - min(heights)) or 0.1
    axes.set_ylim(min(heights) - pad, max(heights) + pad)
    log_axis(axes.yaxis, *axes.get_ylim())
    widths = sorted({float(w) for law in laws for w in np.round(law.widths, 6)})
    shown = widths if len(widths) <= 7 else widths[:: math.ceil(len(widths) / 7)]
    fixed_ticks(axes.xaxis, np.log10(shown), [width_label(width) for width in shown])
