"""Several outputs: which form of the kernel describes the network, lazy and rich (ten digits, 150 points).

Full: N C x N C; trace: the mean over outputs; sum: of the summed logits, 1'K1 / C (Mohamadi, Bae and Sutherland 2023,
who state it for initialisation). Windows from seeds 100 on, which no run of the claims judges, with room of four
standard deviations of a seed between the mean measured there and the window's bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.claims.claim import Claim, Control, Records, Size, Statistics, Window
from bench.studies.scored_networks import ScoredNetworks, scored_networks
from bench.studies.study import Request

Seeds = tuple[int, ...]

RATIO = "log (1 - R2) of the rival / of the sum"
WIDTH: dict[Size, int] = {"cpu": 256, "gpu": 1024}


def _lazy(size: Size, seeds: Seeds) -> list[Request]:
    task, trainer = {"classes": None, "n_train": 150}, {"richness": 0.05, "tolerance": 1e-2}
    return [
        Request(scored_networks, ScoredNetworks("digits", WIDTH[size], trainer, ("network", "initial"), seeds, task))
    ]


def _rich(size: Size, seeds: Seeds) -> list[Request]:
    """One-hot labels, then class codes. At a tolerance of 1e-2 the features are at .966, and no rival at all."""
    task, trainer = {"classes": None, "n_train": 150, "n_test": 256}, {"richness": 4.0, "tolerance": 1e-3}
    compare = ("network", "after", "features")
    return [
        Request(scored_networks, ScoredNetworks("digits", WIDTH[size], trainer, compare, seeds, task, codes=codes))
        for codes in (False, True)
    ]


def _gain(form: str) -> Callable[[Records], Statistics]:
    return lambda records: {
        "R2 over that of the trace": (records[0].arrays[form] - records[0].arrays["initial#trace/r2"]).mean(1)
    }


def _log_ratio(study: int, rival: str) -> Callable[[Records], Statistics]:
    """How far the sum form's 1 - R2 lies below the rival's."""

    def statistics(records: Records) -> Statistics:
        arrays = records[study].arrays
        own, other = (1 - arrays[f"{name}/r2"].mean(1) for name in ("after#sum", rival))
        return {RATIO: np.log(other / own)}

    return statistics


CLAIMS = [
    Claim(
        name="lazy-multi-output-needs-the-full-kernel",
        statement="Ten classes, lazy (richness .05): the full N C x N C kernel beats the trace over outputs by .005 in "
        "R2 at least.",
        source="this suite; Mohamadi, Bae and Sutherland 2023 for the sum of logits",
        kind="calibrated",
        requests=_lazy,
        statistics=_gain("initial/r2"),
        windows={"R2 over that of the trace": Window(low=0.005, gap=0.02)},
        controls=[Control("the sum of logits in place of the full kernel", _gain("initial#sum/r2"))],
        power="Seeds scatter by .003; measured .015.",
        calibration="Windows from seeds 100 to 103, 2026-11-25.",
    ),
    Claim(
        name="rich-multi-output-sum-of-logits-wins",
        statement="Ten classes one-hot, rich (richness 4): the sum form of K_T leaves less than a third of what the "
        "full N C x N C kernel leaves of the network, in 1 - R2.",
        source="this suite; one-hot labels are what it rests on: see sum-of-logits-loses-to-the-features",
        kind="calibrated",
        requests=_rich,
        statistics=_log_ratio(0, "after"),
        windows={RATIO: Window(low=np.log(3), gap=1.0)},
        controls=[Control("class codes in place of one-hot", _log_ratio(1, "after"))],
        power="",
        calibration="Windows from seeds 100 to 105, 2026-11-27.",
        seeds=6,
    ),
    Claim(
        name="sum-of-logits-loses-to-the-features",
        statement="Ten classes coded by random signs, rich (richness 4): the sum form of K_T is further from the "
        "network than regression on its last hidden layer.",
        source="this suite: the sum form's win needs one-hot labels",
        kind="calibrated",
        requests=_rich,
        statistics=_log_ratio(1, "features"),
        windows={RATIO: Window(high=0.0, gap=0.8)},
        controls=[Control("one-hot in place of class codes", _log_ratio(0, "features"))],
        power="",
        calibration="Windows from seeds 100 to 105, 2026-11-27.",
        seeds=6,
    ),
]
