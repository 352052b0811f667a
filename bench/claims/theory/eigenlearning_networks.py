"""Eigenlearning and trained networks: where lazy ones obey the theory, and how feature learning leaves it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.claims.claim import Claim, Control, Records, Size, Statistics, Window
from bench.claims.theory import REDRAWN
from bench.studies.conservation import Conservation, conservation
from bench.studies.double_descent import DoubleDescent, double_descent
from bench.studies.fits import slopes
from bench.studies.kernel_flow import KernelFlow, kernel_flow
from bench.studies.sparse_parity import SparseParity, sparse_parity
from bench.studies.study import Request
from bench.studies.width_dependence import WidthDependence, width_dependence

PAPER = "Simon, Dickens, Karkada, DeWeese, TMLR 2023"
SET = "Windows from seeds 0 to 3, some of them moved after a random redraw, 2026-11-25."
NOTES = "Windows of the theory notes; gaps from the scatter of fresh seeds from 100 on, 2026-11-27."

Seeds = tuple[int, ...]


def _budget(size: Size, seeds: Seeds) -> list[Request]:
    bits, n, width = (6, 16, 64) if size == "cpu" else (8, 32, 512)
    return [Request(conservation, Conservation(size=bits, n=n, width=width, ridges=(0.0,), trials=2, seeds=seeds))]


def _total(column: int) -> Callable[[Records], Statistics]:
    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        return {"sum L / n - 1": a["network_total"][:, column] / a["n_line"][0, 0] - 1}

    return statistics


def _broken(name: str) -> Callable[[Records], Statistics]:
    """At the smallest scale, and the least rise from one scale to the next smaller one."""

    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        total = a["network_total"] / a["n_line"][0, 0] - 1
        if name == "kernel":
            total = a["kernel_total"][:, 0] / a["n_line"][0, 0] - 1
        return {
            "sum L / n - 1": total[:, -1],
            "least rise": np.diff(total[:, 1:] if name != "kernel" else total).min(1),
        }

    return statistics


def _flow(name: str) -> Callable[[Records], Statistics]:
    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        return {"largest error": np.abs(a[name] / a["network"] - 1).max(1)}

    return statistics


def _flow_requests(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(kernel_flow, KernelFlow(width=1024 if size == "cpu" else 8192, seeds=seeds))]


def _width(size: Size, seeds: Seeds) -> list[Request]:
    widths = (32, 64, 128, 256) if size == "cpu" else (128, 512, 2048, 8192)
    return [Request(width_dependence, WidthDependence(widths=widths, inits=8, seeds=seeds))]


def _slope(power: float) -> Callable[[Records], Statistics]:
    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        return {"exponent": slopes(a["widths"], a["distance"][:, 0] ** power)}

    return statistics


def _narrow(size: Size, seeds: Seeds) -> list[Request]:
    settings = WidthDependence(d=8, depth=4, widths=(20,), levels=_HARD, n=(128,), inits=2, tolerance=1e-3, seeds=seeds)
    return [Request(width_dependence, settings)]


_HARD = (3, 8)
"""Levels on which narrow networks leave the theory, one below it and one above."""


def _deviation(kind: str) -> Callable[[Records], Statistics]:
    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        off = (a[f"{kind}_mse"] - a["theory_mse"])[:, 0, :, 0]
        return {f"dE, level {level}": off[:, i] for i, level in enumerate(_HARD)}

    return statistics


def _sparse(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(sparse_parity, SparseParity(n=(300,), seeds=seeds))]


def _fails(name: str) -> Callable[[Records], Statistics]:
    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        return {
            "kernel / theory": a["kernel"][:, 0] / a["theory"][0, 0],
            "rich / theory": a[name][:, 0] / a["theory"][0, 0],
        }

    return statistics


def _features(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(double_descent, DoubleDescent(trials=40, seeds=seeds))]


def _descent(name: str) -> Callable[[Records], Statistics]:
    """Over all k, the peak at k = n among them."""

    def statistics(records: Records) -> Statistics:
        a = records[0].arrays
        gaps = np.abs(a["gaussian"] / a[name] - 1)
        return {"median": np.median(gaps, 1), "largest": gaps.max(1)}

    return statistics


def _double_descent_real(records: Records) -> Statistics:
    a = records[0].arrays
    off_peak = a["k"] != 48
    gaps = np.abs(a["relu"] / a["relu_theory"] - 1)[:, off_peak]
    return {"median, ReLU features": np.median(gaps, 1)}


def _only_kernel(records: Records) -> Statistics:
    a = records[0].arrays
    off_peak = a["k"] != 48
    gaps = np.abs(a["relu"] / a["relu_theory"][:, -1:] - 1)[:, off_peak]
    return {"median, ReLU features": np.median(gaps, 1)}


CLAIMS = [
    Claim(
        name="eigenlearning-lazy-networks-conserve",
        statement="Lazy networks with one initialisation for all targets: learnabilities sum to n within 2.5 %.",
        source=f"{PAPER}, figure 1; shared initialisation is ours", kind="calibrated", requests=_budget, seeds=4,
        calibration=f"{SET} {REDRAWN}", statistics=_total(0),
        windows={"sum L / n - 1": Window(-0.025, 0.025, every=True)},
        controls=[Control("output scale 0.1", _total(-1))],
        power="64 targets each; deviations are .003 at scale 8 and .17 at scale .1.",
    ),
    Claim(
        name="eigenlearning-features-break-the-budget",
        statement="The richer the network, the more learnability beyond n: 5 % and more at output scale 0.1.",
        source="derived here: no kernel, whichever it is, can deviate", kind="calibrated", requests=_budget, seeds=4,
        calibration=SET, statistics=_broken("network"),
        windows={"sum L / n - 1": Window(low=0.05, every=True), "least rise": Window(low=0.0, every=True)},
        controls=[Control("kernel regression", _broken("kernel"))],
        power="Scales 1, .25 and .1 give .02, .11 and .15; seeds scatter by .02.",
    ),
    Claim(
        name="eigenlearning-kernel-flow",
        statement="The test error of a lazy network at any time t is that of the exact flow of its K_0 within 3 %.",
        source="Lee et al. 2019", kind="calibrated", requests=_flow_requests, seeds=4, calibration=SET,
        statistics=_flow("initial"),
        windows={"largest error": Window(high=0.03, every=True)},
        controls=[Control("the flow at 2 t", _flow("twice"))],
        power="Largest over eight moments of training: .003 to .012; at twice the time .21 to .23.",
    ),
    Claim(
        name="eigenlearning-width-exponent",
        statement="E |f_net - f_NTK|^2 falls as 1 / width.",
        source="Lee et al. 2019; measured in Geiger et al. 2020", kind="calibrated", requests=_width, seeds=16,
        calibration=SET, statistics=_slope(1.0),
        windows={"exponent": Window(-1.3, -0.7, gap=0.4)},
        controls=[Control("the distance, not its square", _slope(0.5))],
        power="Eight networks, three targets a width; seeds scatter by .1: an exponent off by .4 more is refuted.",
    ),
    Claim(
        name="eigenlearning-narrow-networks",
        statement="The theory describes networks as narrow as width 20: within .1 in MSE on hard modes of the 8-cube.",
        source=f"{PAPER} (first version), figure on widths", kind="calibrated", requests=_narrow, seeds=12,
        calibration=NOTES, recorded="refuted", statistics=_deviation("network"),
        windows={f"dE, level {level}": Window(-0.1, 0.1, gap=0.2) for level in _HARD},
        controls=[Control("kernel regression on the same sets", _deviation("kernel"))],
        power="n = 128, two networks on each set, those that fit it: off by .78 ± .06 on the parity of all bits, by "
        "-.13 ± .05 on three.",
    ),
    Claim(
        name="eigenlearning-sparse-parity",
        statement="On a parity of 2 of 30 bits theory and kernel agree, and rich networks err less than a fifth.",
        source="negative control; cf. Barak et al. 2022", kind="calibrated", requests=_sparse, seeds=4,
        calibration=NOTES,
        statistics=_fails("rich"),
        windows={"kernel / theory": Window(0.9, 1.1, every=True), "rich / theory": Window(high=0.2, every=True)},
        controls=[Control("lazy networks", _fails("lazy"))],
        power="Rich networks err .04 of the theory, lazy ones .8.",
    ),
    Claim(
        name="eigenlearning-random-features",
        statement="Regression on random features: the finite-width theory holds, to 6 % in the median, 25 % always.",
        source="Simon, Karkada, Ghosh, Belkin, ICLR 2024", kind="calibrated", requests=_features, seeds=4,
        calibration=f"{SET} {REDRAWN}", statistics=_descent("gaussian_theory"),
        windows={"median": Window(high=0.06, every=True), "largest": Window(high=0.25, every=True)},
        controls=[Control("the theory of infinitely many features", _descent("gaussian_kernel"))],
        power="Ten widths through the peak at k = n; the kernel's theory is off by a factor of 3 there.",
    ),
    Claim(
        name="eigenlearning-relu-features",
        statement="Real ReLU features on the 8-cube off the peak: the median error over draws follows within 20 %.",
        source="Simon, Karkada, Ghosh, Belkin, ICLR 2024", kind="calibrated", requests=_features, seeds=4,
        calibration=SET, statistics=_double_descent_real,
        windows={"median, ReLU features": Window(high=0.2, every=True)},
        controls=[Control("the theory of the widest features at all widths", _only_kernel)],
        power="Nine widths; medians of 40 draws scatter by .05.",
    ),
]  # fmt: skip
