"""``claims.html``: every claim with its verdict, its control and the evidence as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import store
from bench.report.figures import GRID, bare, new_figure, styled, svg
from bench.report.markup import page, paragraph, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLAIM, CONTROL, WINDOW = "#0b5394", "#c55a11", "#dbe9d8"
BADGES = {"holds": "match", "refuted": "no-match", "inconclusive": "labels"}
LOG_DECADES = 2  # positive values that span more are drawn on a logarithmic axis

Json = Mapping[str, Any]


def write_claims(document: Json, out: Path) -> Path:
    """The page of a ``bench.claims`` document (as its ``--json``), self-contained."""
    claims, measurements = document["claims"], document["measurements"]
    introduction = paragraph(
        "Blue: one dot an independent seed. Green: where the statement needs the mean to be (each dot, where it says "
        "each). Orange: the same statistic with one ingredient made wrong on purpose; it must be rejected. A claim on "
        "record as refuted is folklore that does not hold; its control is a case in which the statement is true."
    )
    with styled():
        sections = [("overview", "Overview", _overview(claims))]
        sections += [(claim["name"], claim["name"], _section(claim)) for claim in claims]
        sections += [("measurements", "Measurements", _measurements(measurements))]
        sections += [("skipped", "Skipped", _skipped(document["skipped"]))] if document["skipped"] else []
    path = out / "claims.html"
    store.write_text(path, page("Theory claims", sections, introduction))
    return path


def _overview(claims: Sequence[Json]) -> str:
    rows = [
        (f'<a href="#{escape(c["name"])}">{escape(c["name"])}</a>', _badge(c), escape(c["statement"]),
         f"{c['seconds']:.1f}")
        for c in claims
    ]  # fmt: skip
    return table(("claim", "verdict", "statement", "CPU s"), rows, text=(0, 1), long=(2,))


def _badge(claim: Json) -> str:
    verdict = claim["verdict"]
    badge = f'<span class="badge {BADGES[verdict]}">{verdict}</span>'
    if verdict != claim["recorded"]:
        badge += f" on record: {claim['recorded']}"
    elif not claim["passed"] and not claim["reason"]:
        badge += " but a control is not rejected"
    return badge


def _section(claim: Json) -> str:
    head = f"<p>{_badge(claim)} {escape(claim['statement'])}</p>\n"
    head += paragraph(f"Source: {claim['source']}")
    size = "" if all(s["every"] for s in claim["statistic"].values()) else f", one-sided size {claim['alpha']:g}"
    head += paragraph(f"{claim['kind'].capitalize()}{size}. {claim['power']} {claim['calibration']}".strip())
    if claim["reason"]:
        head += paragraph(claim["reason"])
    if not claim["statistic"]:
        return head
    rows = [(escape(name), *_cells(s)) for name, s in claim["statistic"].items()]
    for control in claim["control"]:
        rows += [(f"control: {escape(control['wrong'])}: {escape(name)}", *_cells(s))
                 for name, s in control["statistic"].items()]  # fmt: skip
    return head + table(("statistic", "mean", "must be", "seeds", "verdict"), rows, text=(0, 2, 4)) + _picture(claim)


def _cells(statistic: Json) -> tuple[str, str, str, str]:
    error = statistic["standard_error"]
    mean = _number(statistic["value"]) + ("" if error is None else f" ± {error:.2g}")
    low, high = statistic["low"], statistic["high"]
    if low is not None and low == high:
        bounds = f"{low:.4g}"
    else:
        bounds = " and ".join(f"{sign} {bound:.4g}" for sign, bound in (("≥", low), ("≤", high)) if bound is not None)
    return mean, bounds + (" each" if statistic["every"] else ""), str(statistic["n_seeds"]), statistic["verdict"]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _picture(claim: Json) -> str:
    """A strip a statistic: the window, the seeds, and the seeds of each control below."""
    names = list(claim["statistic"])
    rows = 1 + len(claim["control"])
    height = 0.35 + 0.2 * rows
    figure = new_figure(7.5, len(names) * (height + 0.25) + 0.1)
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.36, right=0.98, hspace=1.1, top=0.97, bottom=0.25 / (len(names) * (height + 0.25)))
    for name, strip in zip(names, axes, strict=True):
        _strip(strip, name, claim)
    return svg(figure)


def _strip(axes: Axes, name: str, claim: Json) -> None:
    own = claim["statistic"][name]
    series = [(name, own["values"], CLAIM)]
    series += [(control["wrong"], control["statistic"][name]["values"], CONTROL)
               for control in claim["control"] if name in control["statistic"]]  # fmt: skip
    values = [v for _, row, _ in series for v in row if v is not None]
    bounds = [bound for bound in (own["low"], own["high"]) if bound is not None]
    everything = [*values, *bounds]
    log = min(everything) > 0 and math.log10(max(everything) / min(everything)) > LOG_DECADES
    bare(axes)
    if log:
        axes.set_xscale("log")
        low, high = min(everything) / 2, max(everything) * 2
    else:
        pad = 0.06 * (max(everything) - min(everything)) or 0.1
        low, high = min(everything) - pad, max(everything) + pad
    axes.set_xlim(low, high)
    start, end = own["low"] if own["low"] is not None else low, own["high"] if own["high"] is not None else high
    if start == end:
        axes.axvline(start, color="#6a9a5b", linewidth=1.5, zorder=0)
    axes.axvspan(max(start, low), min(end, high), color=WINDOW, linewidth=0, zorder=0)
    for row, (_, found, colour) in enumerate(series):
        kept = [v for v in found if v is not None]
        axes.plot(kept, [-row] * len(kept), "o", color=colour, markersize=3.5, alpha=0.7, linestyle="none")
    axes.set_ylim(-len(series) + 0.4, 0.6)
    axes.set_yticks([-row for row in range(len(series))], [_short(label) for label, _, _ in series], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color=GRID, linewidth=0.5)


def _short(label: str, most: int = 44) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _skipped(skipped: Sequence[Json]) -> str:
    rows = [(escape(item["name"]), escape(item["reason"])) for item in skipped]
    return table(("claim", "why"), rows, text=(0, 1))


def _measurements(measurements: Sequence[Json]) -> str:
    rows = []
    for item in measurements:
        for name, s in item["statistic"].items():
            error = "" if s["standard_error"] is None else f" ± {s['standard_error']:.2g}"
            rows.append((escape(item["name"]), escape(item["statement"]), escape(name),
                         f"{_number(s['value'])}{error} (n={s['n_seeds']})"))  # fmt: skip
        if item["reason"]:
            rows.append((escape(item["name"]), escape(item["reason"]), "", ""))
    return table(("measurement", "what", "statistic", "value"), rows, text=(0, 2), long=(1,)) if rows else ""
