"""Training as a course in time: a sequence of kernels, which no single one of them stands for where it moves.

Calibrated windows: from seeds 100 on, which no run of the claims judges, with room of at least four standard
deviations of a seed between the mean measured there and the window's bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.claims.claim import Claim, Control, Measurement, Records, Size, Statistics, Window
from bench.claims.theory import REDRAWN
from bench.claims.theory.rich_regime import DIGITS, SINGLE_INDEX, STAIRCASE
from bench.studies.snapshot_hierarchy import SnapshotHierarchy, snapshot_hierarchy
from bench.studies.study import Request

Seeds = tuple[int, ...]

CALIBRATION = "Windows from seeds 100 to 107, 2026-11-27."


def _hierarchy(size: Size, seeds: Seeds) -> list[Request]:
    width = 256 if size == "cpu" else 1024
    return [Request(snapshot_hierarchy, SnapshotHierarchy(width=width, seeds=seeds))]


def _nine_snapshots(array: str) -> Callable[[Records], Statistics]:
    """Of the most stretches; the log ratio is of 1 - R2."""

    def statistics(records: Records) -> Statistics:
        arrays = records[0].arrays
        r2 = arrays[array][:, -1] if arrays[array].ndim == 2 else arrays[array]
        return {"R2, 9 snapshots": r2, "log (1 - R2) of K_T / of 9 snapshots": np.log((1 - arrays["after"]) / (1 - r2))}

    return statistics


def _whole_hierarchy(records: Records) -> Statistics:
    arrays = records[0].arrays
    ordered = {f"R2, {parts + 1} snapshots": arrays["ordered"][:, i] for i, parts in enumerate(arrays["parts"])}
    return {"R2, K_T": arrays["after"], **ordered, "R2, 9 snapshots in reverse order": arrays["reversed"]}


def _flows(records: Records) -> Statistics:
    arrays = records[0].arrays
    return {
        f"{label}: {what}": arrays[f"{kernel}@flow/{metric}"].mean(1)
        for kernel, label in (("after", "K_T"), ("initial", "K_0"), ("infinite_ntk", "K_inf"))
        for metric, what in (
            ("largest_distance", "largest |f_t - p| / |f_T|"),
            ("loss_distance", "mean |log L - log L_flow|"),
            ("time_factor", "time"),
        )
    }


CLAIMS = [
    Claim(
        name="snapshots-of-the-kernel-tend-to-the-network",
        statement="Staircase, richness .3: descent in the network's own kernel, held between nine snapshots of it in "
        "the order of time, is the network to R2 > .984, and nearer than regression with K_T.",
        source="the path kernel (Domingos 2020), coarsened; this suite",
        kind="calibrated",
        requests=_hierarchy,
        statistics=_nine_snapshots("ordered"),
        windows={
            "R2, 9 snapshots": Window(low=0.984, gap=0.005),
            "log (1 - R2) of K_T / of 9 snapshots": Window(low=0.55, gap=1.0),
        },
        controls=[Control("K_T in every stretch", _nine_snapshots("frozen"))],
        power="Seeds scatter by .002 and .27; an R2 of .98 and a ratio of 0 are refuted.",
        calibration=f"{CALIBRATION} {REDRAWN}",
        seeds=16,
    ),
]

MEASUREMENTS = [
    Measurement(
        "snapshot-hierarchy",
        "Staircase, richness .3: R2 to the network of regression with K_T, and of descent in its kernel between M "
        "snapshots.",
        "this suite",
        _hierarchy,
        _whole_hierarchy,
        seeds=12,
    ),
    *(
        Measurement(
            f"as-if-it-always-had-its-final-kernel-{name}",
            f"{description}: gradient flow in a fixed kernel from f_0 against the network's whole course, time "
            "rescaled once.",
            "this suite",
            requests,
            _flows,
            seeds=12,
        )
        for name, description, requests in (
            ("staircase", "Staircase, richness 3", STAIRCASE),
            ("single-index", "Single index, richness .3", SINGLE_INDEX),
            ("digits", "Digits, richness 3", DIGITS),
        )
    ),
]
