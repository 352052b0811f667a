"""Bias and variance of networks over initialisations and data, against the width.

Networks of one width on D draws of the data from I initialisations each, the same ones on every draw: a two-way table
of functions ``f_di(x)``, whose mean squared test error splits into

    bias^2 + V_data + V_init + V_both,

the variance over the data of the mean over inits, that over the inits of the mean over data, and what neither has alone
(Adlam and Pennington 2020, "Understanding double descent requires a fine-grained bias-variance decomposition"). As
width grows the two parts that inits have a share in fall as 1/width (Geiger et al. 2020, "Scaling description of
generalization with number of parameters in deep learning").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import store
from bench.record import Record, Score
from bench.studies.fits import line, power_law
from bench.studies.named import disjoint_draws, named_model
from bench.studies.panel import Curve, Panel, page
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, Richness, seed_of

PARTS = ("test_error", "bias", "variance_data", "variance_init", "variance_both")


@dataclass(frozen=True)
class BiasVariance:
    """Settings.

    Attributes:
        task, model: names of files in ``conf/task`` and ``conf/model``.
        widths: ascending; the others are compared with the widest.
        draws, inits: of one table, at least two each. Training sets of a table are disjoint, the test set is shared.
        seeds: each a table of its own: a fresh pool of data and fresh inits.
        Others as for the ``Trainer``.
    """

    task: str = "staircase"
    model: str = "mlp"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    richness: Richness = 1.0
    n_train: int = 128
    n_test: int = 512
    noise: float = 0.0
    draws: int = 2
    inits: int = 2
    tolerance: float = 1e-4
    max_steps: int = 100_000
    seeds: tuple[int, ...] = tuple(range(6))

    def __post_init__(self) -> None:
        if len(self.widths) < 3 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths must be three numbers or more, ascending, not {self.widths}.")
        if min(self.draws, self.inits) < 2:
            raise ValueError(f"draws and inits must be at least 2, not {self.draws} and {self.inits}.")
        if not self.seeds:
            raise ValueError("seeds must be one number or more.")


def bias_variance(settings: BiasVariance) -> Record:
    """Everything relative to the mean square of the test labels; arrays have a leading seed axis.

    ``test_error, bias, variance_data, variance_init, variance_both`` [seeds, widths], each without bias of its own (so
    that a part that is zero comes out negative as often as positive), adding up to the test error. ``consistency``
    [seeds, widths]: the squared distance of the mean function of a width to that of the widest, on the same data, less
    what the scatter of few inits adds to it; ``distance``: that of single networks (Vyas et al. 2023, "Feature-learning
    networks are consistent across widths at realistic scales").

    Scores: for each part its limit of infinite width and the coefficient of 1/width, ``<part>/limit`` and
    ``<part>/per_width``; and the exponents of power laws in the width for ``variance_init``, ``variance_both`` and
    ``consistency`` (absent where the values are lost in noise).
    """
    tables = [_table(settings, seed) for seed in settings.seeds]
    unfinished = sum(count for _, _, count in tables)
    split = [[decompose(f, y) for f in outputs] for outputs, y, _ in tables]
    arrays = {name: np.array([[one[name] for one in row] for row in split]) for name in PARTS}
    apart = [[compare(f, outputs[-1], y) for f in outputs] for outputs, y, _ in tables]
    arrays["consistency"], arrays["distance"] = np.moveaxis(np.array(apart), 2, 0)
    arrays["widths"] = np.array(settings.widths)
    fits = {name: line(1 / arrays["widths"], arrays[name]) for name in PARTS}
    arrays |= {
        f"fit_{name}": np.array([fit.intercept.mean() + fit.slope.mean() / arrays["widths"]])
        for name, fit in fits.items()
    }
    card = {"study": "bias_variance", **store.plain(settings), **_page(settings)}
    networks = len(settings.seeds) * len(settings.widths) * settings.draws * settings.inits
    return result(_scores(settings, arrays), arrays, card, unfinished=unfinished, networks=networks)


def _table(settings: BiasVariance, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """f [widths, D, I, n_test c] and y [n_test c] of one table, and how many networks are not done (nan)."""
    tasks = disjoint_draws(
        settings.task, settings.draws, settings.n_train, settings.n_test, seed_of("data", seed), settings.noise
    )
    trainer = Trainer(settings.richness, tolerance=settings.tolerance, max_steps=settings.max_steps)
    outputs, unfinished = [], 0
    for place, width in enumerate(settings.widths):
        # Inits of their own for every width: from one seed, a narrow network is a part of a wide one.
        first = (seed * len(settings.widths) + place) * settings.inits
        inits = range(first, first + settings.inits)
        members = [Member(d, init, crossed=True) for d in range(settings.draws) for init in inits]
        trained = trainer.fit(named_model(settings.model, tasks[0], width), tasks, members)
        f = trained.f_T[:, settings.n_train :].flatten(1).cpu().numpy()
        wrong = [i for i, status in enumerate(trained.status) if status != "done"]
        f[wrong] = np.nan
        unfinished += len(wrong)
        outputs.append(f.reshape(settings.draws, settings.inits, -1))
    return np.array(outputs), tasks[0].y_test.double().flatten().numpy(), unfinished


def decompose(f: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The parts of the mean squared error of a table of functions, relative to ``mean y^2``.

    The estimators of a two-way analysis of variance without replicates, summed over test points: with the mean squares
    of draws, inits and their interaction, ``V_both = MS_both``, ``V_data = (MS_data - MS_both)/I``, ``V_init =
    (MS_init - MS_both)/D``; and the squared error of the grand mean less the variance of that mean is the bias.

    Args:
        f: [D, I, points], at least two of each.
        y: [points].
    """
    D, I, _ = f.shape  # noqa: E741
    grand, of_data, of_init = f.mean((0, 1)), f.mean(1), f.mean(0)
    ms_data = I * ((of_data - grand) ** 2).sum(0) / (D - 1)
    ms_init = D * ((of_init - grand) ** 2).sum(0) / (I - 1)
    both = ((f - of_data[:, None] - of_init[None] + grand) ** 2).sum((0, 1)) / ((D - 1) * (I - 1))
    data, init = (ms_data - both) / I, (ms_init - both) / D
    parts = {
        "test_error": ((f - y) ** 2).mean((0, 1)),
        "bias": (grand - y) ** 2 - data / D - init / I - both / (D * I),
        "variance_data": data,
        "variance_init": init,
        "variance_both": both,
    }
    return {name: float(values.mean() / (y**2).mean()) for name, values in parts.items()}


def compare(f: np.ndarray, widest: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Two widths on the same data: squared distance of their means over all inits, and of two single networks.

    Both relative to ``mean y^2``. Inits of different widths are independent, so that of the mean functions' distance
    the variances of the two means over I inits are taken off; the distance of a width to itself is zero.

    Args:
        f, widest: [D, I, points].
    """
    inits = f.shape[1]
    scale = (y**2).mean()
    if f is widest or np.array_equal(f, widest):
        return 0.0, float(2 * f.var(1, ddof=1).mean() / scale)
    noise = (f.var(1, ddof=1) + widest.var(1, ddof=1)) / inits
    means = ((f.mean(1) - widest.mean(1)) ** 2 - noise).mean()
    single = ((f[:, :, None] - widest[:, None]) ** 2).mean()
    return float(means / scale), float(single / scale)


def _scores(settings: BiasVariance, arrays: dict[str, np.ndarray]) -> tuple[Score, ...]:
    widths = np.array(settings.widths, dtype=np.float64)
    scores = []
    for name in PARTS:
        fit = line(1 / widths, arrays[name])
        scores += [fit.intercept_score(f"{name}/limit"), fit.slope_score(f"{name}/per_width")]
    falling = {name: arrays[name] for name in ("variance_init", "variance_both")}
    falling["consistency"] = arrays["consistency"][:, :-1]
    for name, values in falling.items():
        if power := power_law(widths[: values.shape[1]], values):
            scores.append(power.negated().slope_score(f"{name}/exponent"))
    return tuple(scores)


def _page(settings: BiasVariance) -> dict[str, Any]:
    shown = {"test_error": "test error", "bias": "bias²", "variance_data": "variance, data",
             "variance_init": "variance, init", "variance_both": "variance, both"}  # fmt: skip
    whole, inits = ("test_error", "bias", "variance_data"), ("variance_init", "variance_both")

    def curves(names: tuple[str, ...]) -> tuple[Curve, ...]:
        pairs = ((Curve(shown[n], n, "network"), Curve(shown[n], f"fit_{n}", "fit")) for n in names)
        return tuple(curve for pair in pairs for curve in pair)

    x = ("widths", "width", "relative to mean y²")
    apart = (Curve("mean function", "consistency", "network"), Curve("single networks", "distance", "network"))
    panels = (
        Panel("Error, bias and variance over data", *x, curves(whole), True),
        Panel("Variance over inits, and over both", *x, curves(inits), True),
        Panel(f"Squared distance to width {settings.widths[-1]}", *x, apart, True),
    )
    text = (
        f"Networks (richness {settings.richness}) on {settings.n_train} points of {settings.task}: {settings.draws} "
        f"data draws times {settings.inits} initialisations each, and {len(settings.seeds)} such tables a width. Lines "
        "are fits of limit + coefficient / width, whose numbers are below. A part without bias of its own comes out "
        "negative as often as positive where it is zero. Right: how far functions of a width are from those of the "
        "widest, on the same data: of the mean over initialisations, less what the scatter of few of them adds, and of "
        "single networks."
    )
    return page(f"Bias and variance: {settings.task}", text, panels)
