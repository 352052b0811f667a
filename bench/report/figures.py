"""How every picture looks: one colour a predictor, plain axes, and SVG that is the same bytes every time.

matplotlib is imported where a figure is made: a terminal table needs none. Ticks and legends cost most of the time of
a figure, so ticks are few and fixed, and legends are HTML (see ``render``).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart in every common form of colour blindness.
COLOURS = {
    "after": "#d55e00",
    "initial": "#0072b2",
    "infinite_ntk": "#009e73",
    "network": "#111111",
    "labels": "#777777",
    "kernel": "#9a4a7d",
}
RICHNESS_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#111111")
GRID = "#dddddd"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "widebench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # which comes with matplotlib; a page falls back to the reader's own
    "font.size": 8,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.unicode_minus": False,
}
SKILL_TICKS = (1.0, 0.5, 0.0, -1.0, -9.0)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, with no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def styled() -> AbstractContextManager[None]:
    """The context in which figures are made and written."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element for a page: no prolog, no date, nothing that refers outside."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s*", "\n", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # no group is referred to, and every figure has the same names
    # A hundredth of a point is finer than any screen.
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", path[0]), text)


def symmetric(skill: float | np.ndarray) -> np.ndarray:
    """Skill on a scale from -1 to 1 that does not let -79 squash the rest.

    Skill is 1 - A/B, with A and B the squared distances of prediction and labels to the network. Where A > B this shows
    B/A - 1 instead, so that exchanging prediction and labels changes the sign.
    """
    values = np.asarray(skill, dtype=np.float64)
    return np.where(values >= 0, values, values / (1 - np.minimum(values, 0)))


def fixed_ticks(axis: Any, positions: Iterable[float], labels: Sequence[str] | None = None) -> None:
    """Few ticks, none of them minor: matplotlib's own locators cost more than the lines."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(positions)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter(list(labels)) if labels is not None else NullFormatter())


def bare(axes: Axes) -> None:
    """No box: two spines are enough."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=2, width=0.5, pad=2)


def skill_axis(axes: Axes) -> None:
    """The vertical axis of ``symmetric`` skill, with the labels' zero drawn."""
    axes.set_ylim(-1.06, 1.06)
    fixed_ticks(axes.yaxis, symmetric(np.array(SKILL_TICKS)), [f"{tick:g}" for tick in SKILL_TICKS])
    axes.axhline(0, color=COLOURS["labels"], linewidth=0.9, linestyle=(0, (4, 2)))


def decades(low: float, high: float, most: int = 4) -> list[int]:
    """Exponents of ten between two exponents, at most ``most``; never empty for a range that holds one."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    return list(range(last, first - 1, -step))[::-1]


def power_of_ten(exponent: int) -> str:
    return "1" if exponent == 0 else "10" if exponent == 1 else "10" + str(exponent).translate(_SUPERSCRIPT)


def log_axis(axis: Any, low: float, high: float, enough: int = 2) -> None:
    """Ticks for values plotted as log10: decades, or 1, 2, 5 where the range has fewer of them than are enough."""
    exponents = decades(low, high)
    if len(exponents) >= enough:
        fixed_ticks(axis, exponents, [power_of_ten(e) for e in exponents])
        return
    ticks = _ticks(low, high, (1, 2, 5))
    if len(ticks) < 2:
        ticks = _ticks(low, high, (1, 1.5, 2, 3, 4, 5, 7))
    if len(ticks) < 2:
        ticks = [(value, f"{10**value:.2g}") for value in (low, high)]
    fixed_ticks(axis, [t for t, _ in ticks], [label for _, label in ticks])


def _ticks(low: float, high: float, digits: Iterable[float]) -> list[tuple[float, str]]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = sorted((math.log10(digit) + e, f"{digit * 10.0**e:g}") for e in decades for digit in digits)
    return [tick for tick in ticks if low <= tick[0] <= high]
