"""Eigenvalues of K/N: of the initial, the after and the infinite-width kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.record import Record
from bench.report.curves import cell_title
from bench.report.figures import COLOURS, log_axis
from bench.report.strips import Line, chunks, draw_lines, limits, panel_ticks, strip_figure
from bench.report.studies import Study, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARRAYS = {"initial": "spectrum_initial", "infinite_ntk": "spectrum_infinite", "after": "spectrum_after"}
STYLES: dict[str, Any] = {"initial": "solid", "infinite_ntk": (0, (2.5, 1.5)), "after": "solid"}  # often coincide
POINTS = 60
_DIGITS = 12  # eigenvalues below 1e-12 of the largest are rounding errors


def draw(study: Study) -> Iterator[Figure]:
    """Figures of at most nine cells each: a column a cell, the geometric mean over its members."""
    cells = [r for r in study.records if any(rows(r, name) is not None for name in ARRAYS.values())]
    for some in chunks(cells) if cells else ():
        yield _figure(some)


def thinned(spectra: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Index (from 1) and log10 of the geometric mean over the rows, at no more than ``points`` indices, log-spaced.

    Args:
        spectra: [m, n], descending.
        points: the most that are kept.
    """
    size = spectra.shape[1]
    index = np.unique(np.round(np.geomspace(1, size, min(points, size))).astype(int))
    chosen = spectra[:, index - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.where(chosen > 10.0**-_DIGITS * np.nanmax(spectra), chosen, math.nan)).mean(axis=0)
    return index[np.isfinite(logs)], logs[np.isfinite(logs)]


def _figure(cells: Sequence[Record]) -> Figure:
    size = max(found.shape[1] for r in cells for a in ARRAYS.values() if (found := rows(r, a)) is not None)
    width = math.log10(max(size, 2))
    figure, (axes,) = strip_figure([cell_title(record) for record in cells], (1.9,))
    lines: dict[str, list[Line]] = {predictor: [] for predictor in ARRAYS}
    for panel, record in enumerate(cells):
        for predictor, name in ARRAYS.items():
            spectra = rows(record, name)
            if spectra is not None and np.isfinite(spectra).any():
                index, values = thinned(spectra)
                lines[predictor].append(Line(panel, np.log10(index) / width, values))
    low, high = limits([line for some in lines.values() for line in some]) or (-1.0, 0.0)
    axes.set_ylim(low, high)
    log_axis(axes.yaxis, low, high)
    axes.set_ylabel("eigenvalue of K/N")
    for predictor, some in lines.items():
        draw_lines(axes, some, COLOURS[predictor], STYLES[predictor], width=1.4, alpha=0.9)
    exponents = range(math.floor(width) + 1)
    panel_ticks(axes, len(cells), [e / width for e in exponents], [f"{10**e}" for e in exponents])
    axes.set_xlabel("index", labelpad=2)
    return figure
