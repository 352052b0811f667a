"""Learning curves: test error against the number of training points, of networks and of their kernels.

The question of Vyas, Bansal and Nakkiran (2022, "Limitations of the NTK for understanding generalization in deep
learning"): does a kernel that a network has learnt learn as fast, from data of its own?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import store
from bench.predict import KernelPredictor
from bench.record import Record, Score
from bench.studies.fits import power_law
from bench.studies.named import named_model, named_task, part
from bench.studies.panel import Curve, Panel, page
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, Richness, Trained, seed_of
from models.limits import NoInfiniteWidthLimit, infinite_width
from tasks.task import Task

CURVES = ("network", "after", "after_fresh", "initial", "infinite")


@dataclass(frozen=True)
class LearningCurves:
    """Settings.

    Attributes:
        task, model: names of files in ``conf/task`` and ``conf/model``.
        n: numbers of training points, ascending. The smaller sets are parts of the larger ones.
        seeds: each a draw of the data; with ``inits`` networks of their own.
        fit_from: exponents are fitted to this n and above.
        Others as for the ``Trainer``.
    """

    task: str = "staircase"
    model: str = "mlp"
    width: int = 256
    richness: Richness = 3.0
    n: tuple[int, ...] = (32, 64, 128, 256, 512)
    n_test: int = 512
    noise: float = 0.0
    inits: int = 1
    tolerance: float = 1e-4
    max_steps: int = 100_000
    fit_from: int = 0
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        if len(self.n) < 2 or list(self.n) != sorted(set(self.n)):
            raise ValueError(f"n must be two numbers or more, ascending, not {self.n}.")
        if sum(n >= self.fit_from for n in self.n) < 2:
            raise ValueError(f"fit_from must leave two of {self.n}, not {self.fit_from}.")
        if not self.seeds or self.inits < 1:
            raise ValueError("seeds must be one number or more, and inits at least 1.")


def learning_curves(settings: LearningCurves) -> Record:
    """Test errors ``|p - y|^2 / |y|^2`` as arrays with a leading seed axis, averaged over inits, and their exponents.

    ``error_network``, ``error_after`` (the network's own K_T on its own data), ``error_initial`` (K_0),
    ``error_infinite``: [seeds, n]. ``error_fresh`` [seeds, n trained on, n used]: K_T of the network that was trained
    on so many points, in regression on so many *other* points, which the network has not seen; a row is the curve of
    one fixed kernel, and its diagonal is ``error_after_fresh`` [seeds, n]. Networks that did not reach the tolerance
    are nan, and the record says so. Regression is without ridge (``noise`` or not), from base zero; networks are
    centred.
    """
    seeds = [_seed(settings, seed) for seed in settings.seeds]
    arrays = {name: np.array([found[name] for found, _ in seeds]) for name in seeds[0][0]}
    unfinished = sum(count for _, count in seeds)
    arrays["n"] = np.array(settings.n)
    arrays["error_after_fresh"] = np.diagonal(arrays["error_fresh"], axis1=1, axis2=2).copy()
    card = {"study": "learning_curves", **store.plain(settings), **_page(settings, "error_infinite" in arrays)}
    networks = len(settings.seeds) * settings.inits * len(settings.n)
    return result(_scores(settings, arrays), arrays, card, unfinished=unfinished, networks=networks)


def _seed(settings: LearningCurves, seed: int) -> tuple[dict[str, np.ndarray], int]:
    """The errors of one data draw, and how many of its networks are not done."""
    largest = settings.n[-1]
    pool = named_task(settings.task, 2 * largest, settings.n_test, seed_of("data", seed), settings.noise)
    own, fresh = part(pool, range(largest)), part(pool, range(largest, 2 * largest))
    net = named_model(settings.model, pool, settings.width)
    trainer = Trainer(settings.richness, tolerance=settings.tolerance, max_steps=settings.max_steps)
    of_networks = ("network", "after", "initial")
    errors = {f"error_{name}": np.full((settings.inits, len(settings.n)), np.nan) for name in of_networks}
    errors["error_fresh"] = np.full((settings.inits, len(settings.n), len(settings.n)), np.nan)
    unfinished = 0
    for column, n in enumerate(settings.n):
        task = part(own, range(n))
        members = [Member(0, seed * settings.inits + init) for init in range(settings.inits)]
        trained = trainer.fit(net, [task], members)
        for i, status in enumerate(trained.status):
            if status != "done":
                unfinished += 1
                continue
            errors["error_network"][i, column] = _error(trained.f_T[i, n:], task)
            errors["error_after"][i, column] = _regression_error(trained.ntk[i, -1], task, n)
            errors["error_initial"][i, column] = _regression_error(trained.ntk[i, 0], task, n)
            kernel = _after_kernel(trained, i, fresh)
            errors["error_fresh"][i, column] = [_regression_error(kernel, fresh, used) for used in settings.n]
    means = {name: values.mean(0) for name, values in errors.items()}
    if (limit := _limit(net, own)) is not None:
        means["error_infinite"] = np.array([_regression_error(limit, own, n) for n in settings.n])
    return means, unfinished


def _error(prediction: Tensor, task: Task) -> float:
    y = task.y_test.to(prediction)
    return float((prediction - y).square().sum() / y.square().sum())


def _regression_error(kernel: Tensor, task: Task, n: int) -> float:
    """Of regression on the first n training points; kernel [n_train + n_test, n_train], all outputs or one for all."""
    kernel = kernel[:, :, 0, 0] if kernel.ndim == 4 and kernel.shape[2] == 1 else kernel
    predictor = KernelPredictor(kernel[:n, :n]).fit(task.y_train[:n])
    return _error(predictor.predict(kernel[task.n_train :, :n]), task)


def _after_kernel(trained: Trained, member: int, task: Task) -> Tensor:
    """K_T of a trained network on the points of another task, [n_train + n_test, n_train, c, c]."""
    x = task.x_train.to(trained.f_T.device)
    kernel: Tensor = trained.kernels([member], -1, torch.cat([x, task.x_test.to(x)]), x)[0]
    return kernel


def _limit(net: nn.Module, task: Task) -> Tensor | None:
    x = task.x_train.double()
    try:
        return infinite_width(net)(torch.cat([x, task.x_test.double()]), x).ntk
    except NoInfiniteWidthLimit:
        return None


def _scores(settings: LearningCurves, arrays: dict[str, np.ndarray]) -> tuple[Score, ...]:
    """Exponents alpha of ``error ~ n^-alpha``: of each curve, and of each fixed after-kernel on fresh data."""
    n = np.array(settings.n)
    kept = n >= settings.fit_from
    curves = {name: arrays[f"error_{name}"] for name in CURVES if f"error_{name}" in arrays}
    curves |= {f"after_of_{size}": arrays["error_fresh"][:, row] for row, size in enumerate(settings.n)}
    fits = {name: power_law(n[kept], values[:, kept]) for name, values in curves.items()}
    return tuple(fit.negated().slope_score(f"{name}/exponent") for name, fit in fits.items() if fit)


def _page(settings: LearningCurves, limited: bool) -> dict[str, Any]:
    x = ("n", "training points N", "relative test error")
    own = [
        Curve("network", "error_network", "network"),
        Curve("after-kernel, its own data", "error_after", "kernel"),
        Curve("after-kernel, fresh data", "error_after_fresh", "kernel"),
        Curve("initial kernel", "error_initial", "kernel"),
    ]
    if limited:
        own.append(Curve("infinite width", "error_infinite", "kernel"))
    fixed = [Curve(f"K_T of {n} points", "error_fresh", "kernel", (row,)) for row, n in enumerate(settings.n)]
    panels = (
        Panel("Learning curves", *x, tuple(own), True, True),
        Panel("Each after-kernel on fresh data", *x, (own[0], *fixed), True, True),
    )
    text = (
        f"Test error of networks of width {settings.width} (richness {settings.richness}) on {settings.task} against "
        "the number of training points, and of regression with their kernels. An after-kernel has seen its labels: on "
        "its own data it repeats what the network learnt there; on as many fresh points it shows what the kernel "
        "itself has learnt. Exponents are alpha of error ~ N^-alpha, fitted to the mean over the seeds"
        + (f" from N = {settings.fit_from} on." if settings.fit_from else ".")
    )
    return page(f"Learning curves: {settings.task}, width {settings.width}", text, panels)
