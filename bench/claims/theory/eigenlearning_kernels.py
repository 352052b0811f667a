"""Eigenlearning against kernel regression (Simon, Dickens, Karkada, DeWeese 2023): claims that need no network.

A seed is a set of random training sets; statistics are its means. Numbers of the claims are those of the theory notes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.claims.claim import Claim, Control, Measurement, Records, Size, Statistics, Window
from bench.claims.theory import REDRAWN, RESIZED
from bench.studies.conservation import Conservation, conservation
from bench.studies.deep_bootstrap import DeepBootstrap, deep_bootstrap
from bench.studies.finite_domain import FIELDS, FiniteDomain, finite_domain
from bench.studies.pure_modes import PureModes, pure_modes
from bench.studies.study import Request

PAPER = "Simon, Dickens, Karkada, DeWeese, TMLR 2023"
SET = "Windows from seeds 0 to 7, some of them moved after a random redraw, 2026-11-25."
NOTES = "Windows of the theory notes; gaps from the scatter of fresh seeds from 100 on, 2026-11-27."

Seeds = tuple[int, ...]
Arrays = dict[str, np.ndarray]


def _law(size: Size, seeds: Seeds) -> list[Request]:
    d, n = (8, 32) if size == "cpu" else (10, 128)
    settings = Conservation(size=d, n=n, scales=(), ridges=(0.0, 0.1, 0.3, 1.0, 3.0), trials=100, seeds=seeds)
    return [Request(conservation, settings)]


def _domain(size: Size, seeds: Seeds) -> list[Request]:
    if size == "cpu":
        return [Request(finite_domain, FiniteDomain(case_trials=1000, trials=500, seeds=seeds))]
    cases = ((128.0, 1.0, 0.0), (512.0, 1.0, 0.0), (512.0, 0.0, 0.3), (512.0, 1.0, 0.3))
    return [
        Request(
            finite_domain,
            FiniteDomain(d=10, cases=cases, moments_n=(128, 256), case_trials=1000, trials=500, seeds=seeds),
        )
    ]


def _modes(**settings: Any) -> Callable[[Size, Seeds], Sequence[Request]]:
    return lambda size, seeds: [Request(pure_modes, PureModes(**{"trials": 100, "seeds": seeds, **settings}))]


def _norms(size: Size, seeds: Seeds) -> list[Request]:
    """Inputs of norm sqrt(d) and 1 with the same directions and training sets, at depth 4 and 1."""
    shared = {"domain": "sphere", "n": (16, 32, 64, 128, 256), "levels": (1, 2, 3), "trials": 20, "points": 1024}
    makers = [_modes(depth=depth, radius=radius, **shared) for depth in (4, 1) for radius in (None, 1.0)]
    return [request for make in makers for request in make(size, seeds)]


def _bootstrap(size: Size, seeds: Seeds) -> list[Request]:
    n = (16, 64, 256) if size == "cpu" else (16, 64, 256, 1024)
    return [Request(deep_bootstrap, DeepBootstrap(n=n, gaussian_trials=100, population=0, seeds=seeds))]


def _of(function: Callable[[Arrays], Statistics], record: int = 0) -> Callable[[Records], Statistics]:
    return lambda records: function(dict(records[record].arrays))


def _worst(values: np.ndarray) -> np.ndarray:
    """The largest absolute value of each seed."""
    return np.abs(values).reshape(len(values), -1).max(1)


def _relative_gap(measured: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return measured / expected - 1


def _mode_gaps(shift: int = 0, scaled: bool = False, name: str = "theory") -> Callable[[Arrays], Statistics]:
    """dE and dL of each seed at its worst mode and n; shift: theory for that many values of n further on."""

    def statistics(a: Arrays) -> Statistics:
        keep = slice(0, a["n"].size - shift)
        square = a["mean_square"][:, :, None] if scaled else 1.0
        gaps = {}
        for key, quantity in (("dE", "mse"), ("dL", "learnability")):
            theory = a[f"{name}_{quantity}"][:, :, shift:]
            gaps[key] = _worst(a[f"kernel_{quantity}"][:, :, keep] * square - theory)
        return gaps

    return statistics


_MISSED, _DEGREE_3 = "change missed, depth 4", "dE, degree 3, n = 256, depth 1"


def _other_norm(mismatched: bool) -> Callable[[Records], Statistics]:
    """Inputs of norm sqrt(d), beside the theory of norm 1 or of their own.

    Their curves, less those of the same directions at norm 1, are projected on the change that the theory makes from
    one norm to the other: what samples and training sets of both have in common drops out. The theory of one norm for
    both predicts no change. At depth 1 the change is large enough to be seen without that.
    """

    def statistics(records: Records) -> Statistics:
        own, unit, shallow, shallow_unit = (record.arrays for record in records)
        quantities = ("mse", "learnability")
        predicted, measured = (
            np.concatenate([own[f"{kind}_{name}"] - unit[f"{kind}_{name}"] for name in quantities], 2)
            for kind in ("theory", "kernel")
        )
        seen = (measured * predicted).sum((1, 2)) / (predicted**2).sum()
        theory = (shallow_unit if mismatched else shallow)["theory_mse"]
        return {
            _MISSED: seen - (0 if mismatched else 1),
            _DEGREE_3: shallow["kernel_mse"][:, -1, -1] - theory[0, -1, -1],
        }

    return statistics


def _peak(level: int) -> Callable[[Arrays], Statistics]:
    """Of the hardest mode: its highest error over that of the theory of a mode, and the identity at n = 1."""

    def statistics(a: Arrays) -> Statistics:
        return {
            "peak / theory": a["kernel_mse"][:, -1].max(1) / a["theory_mse"][0, level].max(),
            "E(1) identity": np.full(len(a["kernel_mse"]), np.abs(a["kernel_first"][0, -1] - a["first_mse"][0, level])),
        }

    return statistics


def _replacement(name: str) -> Callable[[Arrays], Statistics]:
    def statistics(a: Arrays) -> Statistics:
        return {
            f"{field}, case {case}": _relative_gap(a["measured"][:, case, place], a[name][:, case, place])
            for case in range(a["measured"].shape[1])
            for place, field in enumerate(FIELDS[:2])
        }

    return statistics


_CASES = [f"{field}, case {case}" for case in range(4) for field in FIELDS[:2]]


def _noise(shift: int = 0) -> Callable[[Arrays], Statistics]:
    def statistics(a: Arrays) -> Statistics:
        last = a["tau"].size - shift
        test = _relative_gap(a["noise_test"][:, 1:, :last], a["noise_test_theory"][:, 1:, shift:])
        theory = a["noise_train_theory"][:, 1:, shift:]
        train = _relative_gap(a["noise_train"][:, 1:, :last], theory) * (theory > 0.01)
        return {"E_0": _worst(test), "train": _worst(train)}

    return statistics


def _curves(shift: int = 0) -> Callable[[Arrays], Statistics]:
    def statistics(a: Arrays) -> Statistics:
        last = a["tau"].size - shift
        gaps = np.abs(_relative_gap(a["test"][:, :, :last], a["test_theory"][:, :, shift:])).reshape(len(a["test"]), -1)
        return {"median": np.median(gaps, 1), "largest": gaps.max(1)}

    return statistics


def _moments(name: str) -> Callable[[Arrays], Statistics]:
    def statistics(a: Arrays) -> Statistics:
        found = a[name].reshape(len(a[name]), -1)
        return {
            "variance / (L^2 E / n)": found.mean(1),
            "bias": a["bias_ratio"].mean(1),
            "spread": a["spread_ratio"].mean(1),
        }

    return statistics


def _worst_signed(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).max(1)


CLAIMS = [
    Claim(
        name="eigenlearning-conservation",
        statement="Learnabilities of any complete basis of targets sum to n exactly, for any kernel without ridge.",
        source=f"{PAPER}, theorem 3.2", kind="theorem", requests=_law, seeds=8,
        statistics=_of(lambda a: {"|sum L / n - 1|": _worst(a["kernel_total"] / a["ridge_plain"][0, 0] - 1)}),
        windows={"|sum L / n - 1|": Window(high=1e-12, every=True)},
        controls=[Control("with a ridge of 0.1", _of(
            lambda a: {"|sum L / n - 1|": _worst(a["ridge_total"][:, 1:2] / a["ridge_plain"][0, 0] - 1)}))],
        power="An identity: rounding is below 1e-13, and a ridge of .1 shows at 1e-2.",
    ),
    Claim(
        name="eigenlearning-ridge-budget",
        statement="With ridge, learnabilities sum to n - delta / kappa, within 5 % for n an eighth of the domain.",
        source=f"{PAPER}, section 3", kind="calibrated", requests=_law, seeds=8, calibration=SET,
        statistics=_of(lambda a: {"plain": _worst(_relative_gap(a["ridge_total"], a["ridge_plain"])),
                                  "without replacement": _worst(_relative_gap(a["ridge_total"], a["ridge_finite"]))}),
        windows={"plain": Window(high=0.05, every=True), "without replacement": Window(high=0.01, every=True)},
        controls=[Control("no share of the ridge", _of(
            lambda a: {"plain": _worst(_relative_gap(a["ridge_total"], a["ridge_plain"][:, :1]))}))],
        power="Seeds scatter by .001; the ridges take up to half of the budget.",
    ),
    Claim(
        name="eigenlearning-without-replacement",
        statement="On n of the M points of a domain, finite-population formulas hold within 2.5 %, noise included.",
        source="derived here by free compression of K_MM", kind="calibrated", requests=_domain, seeds=8,
        calibration=f"{SET} {REDRAWN} {RESIZED}", alpha=1e-3,
        statistics=_of(_replacement("finite")),
        windows={name: Window(-0.025, 0.025, gap=0.03) for name in _CASES},
        controls=[Control("plain eigenlearning", _of(_replacement("plain")))],
        power="Means of 1000 sets scatter by .004 between seeds: of a size of 1e-3, 1 % beyond the window is refuted.",
    ),
    Claim(
        name="eigenlearning-plain-without-replacement",
        statement="Plain eigenlearning holds within 2 % on half of the points of a domain.",
        source="common practice on discrete domains and image sets", kind="calibrated", requests=_domain, seeds=8,
        calibration=SET, recorded="refuted",
        statistics=_of(_replacement("plain")),
        windows={name: Window(-0.02, 0.02, gap=0.03) for name in _CASES},
        controls=[Control("the formulas without replacement", _of(_replacement("finite")))],
        power="Off by 10 to 60 % at n / M = 1/2, against 2 %.",
    ),
    Claim(
        name="eigenlearning-modes-cube",
        statement="Pure modes of the 8-cube, n >= 8: test MSE within .07 and learnability within .025 of the theory.",
        source=f"{PAPER}, figure 2", kind="calibrated", requests=_modes(domain="cube"), seeds=8,
        calibration=f"{SET} {REDRAWN}",
        statistics=_of(_mode_gaps()),
        windows={"dE": Window(high=0.07, every=True), "dL": Window(high=0.025, every=True)},
        controls=[Control("theory of twice as many points", _of(_mode_gaps(1)))],
        power="Largest over modes and n; seeds of 100 sets scatter by .01 in dE and .003 in dL.",
    ),
    Claim(
        name="eigenlearning-modes-sphere",
        statement="Pure modes of the 7-sphere, n >= 16, norm 1 on the sample: within .08 in MSE and .05 in L.",
        source=f"{PAPER}, figure 2", kind="calibrated", seeds=16, calibration=f"{NOTES} {REDRAWN}",
        requests=_modes(domain="sphere", n=(16, 32, 64, 128), levels=(0, 1, 2)),
        statistics=_of(_mode_gaps()),
        windows={"dE": Window(high=0.08, gap=0.05), "dL": Window(high=0.05, gap=0.03)},
        controls=[Control("theory of twice as many points", _of(_mode_gaps(1)))],
        power="A sample's worst mode and n, of means of 100 sets: .022 and .016, scattering by .012 and .008.",
    ),
    Claim(
        name="eigenlearning-sphere-other-norm",
        statement="On the 7-sphere the theory of inputs of norm 1 serves inputs of norm sqrt(d): within .05 in MSE.",
        source="theory notes, claim 3b: norms must be the same in theory and data", kind="calibrated", seeds=16,
        calibration=f"{NOTES} {RESIZED}", recorded="refuted", requests=_norms, statistics=_other_norm(True),
        windows={_MISSED: Window(-0.1, 0.1, gap=0.1), _DEGREE_3: Window(-0.05, 0.05, gap=0.2)},
        controls=[Control("the theory of their own norm", _other_norm(False))],
        power="The bias of .1 weighs eight times more at norm 1. Paired by seed, the change scatters by .03 of itself.",
    ),
    Claim(
        name="eigenlearning-modes-circle",
        statement="Pure modes of the circle, n >= 8: test MSE within .1 of the theory.",
        source=f"{PAPER}, figure 2", kind="calibrated", seeds=8, calibration=SET, recorded="refuted",
        requests=lambda size, seeds: [*_modes(domain="circle")(size, seeds), *_modes(domain="cube")(size, seeds)],
        statistics=_of(lambda a: {"dE": _mode_gaps()(a)["dE"]}),
        windows={"dE": Window(high=0.1, every=True)},
        controls=[Control("the 8-cube instead", _of(lambda a: {"dE": _mode_gaps()(a)["dE"]}, 1))],
        power="Off by .3 and more: in one dimension the universality that the theory rests on fails.",
    ),
    Claim(
        name="eigenlearning-worse-than-chance",
        statement="Hard modes of the 6-cube: E(1) is exact, and the peak above chance is predicted within 10 %.",
        source=f"{PAPER}, section 4.3; E(1) derived here", kind="calibrated", seeds=8, calibration=SET,
        requests=_modes(domain="cube", size=6, depth=1, levels=(2, 4, 6), n=(8, 12, 16, 18, 20, 24)),
        statistics=_of(_peak(2)),
        windows={"peak / theory": Window(0.9, 1.1, gap=0.1), "E(1) identity": Window(high=1e-10, every=True)},
        controls=[Control("the theory of level 2", _of(_peak(0)))],
        power="Means of 100 sets scatter by .02 between seeds.",
    ),
    Claim(
        name="eigenlearning-second-moments",
        statement="Learned coefficients scatter with variance L^2 E / n; bias and variance of the error follow.",
        source=f"{PAPER}, equation 12", kind="calibrated", requests=_domain, seeds=8, calibration=SET,
        statistics=_of(_moments("variance_ratio")),
        windows={"variance / (L^2 E / n)": Window(0.9, 1.1, gap=0.1), "bias": Window(0.95, 1.05, gap=0.05),
                 "spread": Window(0.95, 1.06, gap=0.1)},
        controls=[Control("L instead of L^2", _of(
            lambda a: {"variance / (L^2 E / n)": _moments("variance_wrong")(a)["variance / (L^2 E / n)"]}))],
        power="Means over levels of 500 sets scatter by .02 between seeds.",
    ),
    Claim(
        name="eigenlearning-noise",
        statement="On pure noise the test error is E_0 and the train error (delta / n kappa)^2 E_0, within 8 and 10 %.",
        source=f"{PAPER}, equations 9 and 11", kind="calibrated", requests=_bootstrap, seeds=8,
        calibration=f"{NOTES} {REDRAWN}",
        statistics=_of(_noise()),
        windows={"E_0": Window(high=0.08, gap=0.05), "train": Window(high=0.1, gap=0.1)},
        controls=[Control("theory of a smaller ridge", _of(_noise(2)))],
        power="Largest over n and ridges, of means of 100 sets a seed: .01 and .03, scattering by .006 and .015.",
    ),
    Claim(
        name="eigenlearning-parity-bound",
        statement="No network kernel learns the parity of all d bits beyond L = n / 2^(d-1).",
        source=f"{PAPER}, appendix on parities", kind="theorem", requests=_domain, seeds=8,
        statistics=_of(lambda a: {"theory - bound": _worst_signed(a["parity_theory"] - a["parity_bound"]),
                                  "kernel - bound": _worst_signed(a["parity"] - a["parity_bound"])}),
        windows={"theory - bound": Window(high=0.0, every=True), "kernel - bound": Window(high=0.0, every=True)},
        controls=[Control("the bound for eight bits more", _of(
            lambda a: {"kernel - bound": _worst_signed(a["parity"] - a["parity_bound"] / 256)}))],
        power="Three kernels, four n: theory lies .03 and more below the bound.",
    ),
    Claim(
        name="eigenlearning-bootstrap-ridge",
        statement="Power-law data: test error against ridge and n, median within 5 % and all within 25 %.",
        source="Nakkiran et al. 2021; theory by eigenlearning", kind="calibrated", requests=_bootstrap, seeds=8,
        calibration=f"{NOTES} {RESIZED}",
        statistics=_of(_curves()),
        windows={"median": Window(high=0.05, gap=0.05), "largest": Window(high=0.25, gap=0.15)},
        controls=[Control("theory of a smaller ridge", _of(_curves(1)))],
        power="27 settings of n and ridge, means of 100 sets a seed: .01 and .05, scattering by .003 and .02.",
    ),
    Claim(
        name="eigenlearning-shifted-inputs",
        statement="Under reweighted inputs, the risk from the two moments of the coefficients holds within 8.5 %.",
        source="derived here from the moments; cf. Canatar, Bordelon, Pehlevan 2021", kind="calibrated",
        requests=_domain, seeds=8, calibration=f"{SET} {REDRAWN}", alpha=1e-3,
        statistics=_of(lambda a: {"risk": _relative_gap(a["shifted"], a["shifted_theory"]).mean(1)}),
        windows={"risk": Window(-0.085, 0.085, gap=0.06)},
        controls=[
            Control("no shift", _of(lambda a: {"risk": _relative_gap(a["shifted"], a["unshifted_theory"]).mean(1)}))
        ],
        power="Means of 500 sets: .034, scattering by .012; the shift is worth 13 %, enough for a size of 1e-3.",
    ),
]  # fmt: skip

MEASUREMENTS = [
    Measurement(
        name="eigenlearning-sphere-norms",
        statement="Largest dE on 512 points of the 7-sphere, with harmonics of norm 1 on them or on the sphere.",
        source="the released code's normalisation",
        requests=_modes(domain="sphere", n=(16, 32, 64), levels=(0, 1, 2), trials=50, points=512),
        statistics=_of(
            lambda a: {"on the sample": _mode_gaps()(a)["dE"], "on the sphere": _mode_gaps(scaled=True)(a)["dE"]}
        ),
    )
]
