"""Shallow networks that stand in for deep ones: their kernels, what those predict, and the loss curves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench import store
from bench.compare.metrics import relative_l2
from bench.predict import KernelPredictor
from bench.record import Record, summarise
from bench.studies.fits import ratio
from bench.studies.panel import Curve, Panel, page
from bench.studies.plain_descent import Descent, descend
from bench.studies.published_mimic import published_kernel
from bench.studies.study import result
from bench.trained import seed_of
from models.design import Design, design
from models.limits import infinite_width
from models.mlp import mlp
from tasks.tabular import breast_cancer, digits, wine
from tasks.task import Task

TABLES = {"breast_cancer": breast_cancer, "wine": wine}
SHALLOW = {"design": "designed", "published": "published", "relu": "ReLU, best scale"}
PARTS = ("train", "test")
SHOWN = 40  # steps of the curves kept, at most


@dataclass(frozen=True)
class Mimics:
    """Settings: each seed is a data draw of digits, on which kernels predict."""

    n_train: int = 200
    n_test: int = 300
    seeds: tuple[int, ...] = tuple(range(8))


def mimics(settings: Mimics) -> Record:
    """How near kernels of one hidden layer come to the NTK of "relu:4".

    Arrays: ``error_<name>`` [1], the largest over c relative to K(1); ``regression_<name>`` [seeds], the relative L2
    distance of their predictions on digits; names ``design``, ``published`` and ``relu`` (of the best scale).
    ``kernel_<name>`` and ``off_<name>`` [1, angles], K(c) / K(1) and its distance from the target's, which is
    ``kernel_target``, at some ``angle`` [angles].
    """
    theta = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    circle = math.sqrt(2) * torch.stack([torch.cos(theta), torch.sin(theta)], 1)
    made = design("relu:4")
    target = infinite_width(_relu(2, 1, 4, 1))(circle).ntk[0]
    scale = _best_scale(infinite_width(_relu(2, 1, 1, 1))(circle).ntk[0], target)
    shown = slice(None, None, 15)
    arrays = {"angle": theta[shown].numpy(), "kernel_target": (target / target[0])[None, shown].numpy()}
    for name, kernel in (
        ("design", made.kernel),
        ("published", published_kernel),
        ("relu", lambda x: scale * infinite_width(_relu(x.shape[1], 1, 1, 1))(x).ntk),
    ):
        found = kernel(circle)[0]
        off = (found - target).abs() / target[0]
        arrays[f"kernel_{name}"], arrays[f"off_{name}"] = (
            (found / target[0])[None, shown].numpy(),
            off[None, shown].numpy(),
        )
        arrays[f"error_{name}"] = off.max()[None].numpy()
        arrays[f"regression_{name}"] = np.array([_distance(kernel, settings, seed) for seed in settings.seeds])
    scores = tuple(
        summarise(f"{name}/{what}", list(arrays[f"{array}_{name}"]), seeds)
        for name in SHALLOW
        for array, what, seeds in (
            ("error", "largest error", [0]),
            ("regression", "distance on digits", settings.seeds),
        )
    )
    return result(scores, arrays, {**store.plain(settings), **_kernels_page(settings)})


def _kernels_page(settings: Mimics) -> dict[str, Any]:
    def panel(title: str, label: str, prefix: str, more: tuple[Curve, ...] = (), log_y: bool = False) -> Panel:
        curves = tuple(Curve(label, f"{prefix}_{name}", "theory") for name, label in SHALLOW.items())
        return Panel(title, "angle", "angle between inputs, rad", label, more + curves, log_y=log_y)

    deep = (Curve("four hidden layers", "kernel_target", "reference"),)
    panels = (
        panel("NTKs", "K(c) / K(1)", "kernel", deep),
        panel("Distance from four hidden layers", "|K - target| / K(1)", "off", log_y=True),
    )
    text = (
        "Kernels of one hidden layer beside the NTK of four hidden ReLU layers (w_std^2 = 2, b_std = .1): the "
        "activation that models.design finds, the published one (seven parameters, fitted for two hours on a GPU) and "
        "ReLU, scaled as well as it can be. The scores are the largest error over 721 angles, and how far predictions "
        f"of regression on {settings.n_train} digits lie from those of the deep kernel (relative L2)."
    )
    return page("Shallow kernels that stand in for a deep one", text, panels)


@dataclass(frozen=True)
class MimicCurves:
    """Settings: each seed is a data draw and initialisations; ``rate`` and ``steps`` of descent are those of all."""

    task: Literal["breast_cancer", "wine"] = "breast_cancer"
    n_train: int = 100
    n_test: int = 78
    width: int = 256
    rate: float = 0.2
    steps: int = 200
    seeds: tuple[int, ...] = tuple(range(10))


def mimic_curves(settings: MimicCurves) -> Record:
    """Loss curves of a deep ReLU network, its shallow mimic and shallow ReLU networks, all centred.

    Arrays ``gap_<net>_train`` and ``..._test`` [seeds]: mean over steps of the distance between the losses of ``net``
    and of the deep network; nets ``mimic``, ``relu`` and ``relu_again`` (of another init). ``train_<net>`` and
    ``test_<net>`` [seeds, shown], of ``deep``, too: the losses after ``step`` [shown] steps. Scores: gaps in a ratio to
    those of ``relu``.
    """
    made = design("relu:4")
    shown = np.unique(np.geomspace(1, settings.steps + 1, SHOWN).round().astype(int)) - 1
    columns: dict[str, list[Any]] = {}
    for seed in settings.seeds:
        task = _published_inputs(
            TABLES[settings.task](
                n_train=settings.n_train, n_test=settings.n_test, seed=seed_of("data", seed), inputs="raw"
            )
        )
        nets = _shallow_and_deep(made, task, settings.width, seed)
        runs = {name: _descend(net, task, settings) for name, net in nets.items()}
        for name, run in runs.items():
            for part in PARTS:
                loss, deep = getattr(run, part), getattr(runs["deep"], part)
                columns.setdefault(f"gap_{name}_{part}", []).append(float((loss - deep).abs().mean()))
                columns.setdefault(f"{part}_{name}", []).append(loss[shown].numpy())
    arrays = {name: np.array(values) for name, values in columns.items() if not name.startswith("gap_deep")}
    scores = tuple(
        summarise(f"{net}/{part} gap over that of ReLU",
                  list(ratio(arrays[f"gap_{net}_{part}"], arrays[f"gap_relu_{part}"])), settings.seeds)
        for net in ("mimic", "relu_again")
        for part in PARTS
    )  # fmt: skip
    return result(scores, {**arrays, "step": shown}, {**store.plain(settings), **_curves_page(settings)})


def _curves_page(settings: MimicCurves) -> dict[str, Any]:
    nets = {"deep": "four hidden ReLU layers", "mimic": "mimic, one hidden layer", "relu": "ReLU, one hidden layer"}
    panels = tuple(
        Panel(f"{part.capitalize()} loss", "step", "step", "mean squared error, summed over classes",
              tuple(Curve(label, f"{part}_{net}", "network") for net, label in nets.items()))
        for part in PARTS
    )  # fmt: skip
    text = (
        f"Networks of width {settings.width} on {settings.n_train} points of {settings.task}, full-batch descent at "
        f"rate {settings.rate:g}, inputs as in the published experiment. The scores are the mean distance of a loss "
        "curve from that of the deep network, in units of the shallow ReLU network's; relu_again is such a network of "
        "another initialisation."
    )
    return page(f"A shallow mimic trains like a deep network: {settings.task}", text, panels)


def _published_inputs(task: Task) -> Task:
    """Raw inputs as in the published experiment: one mean and one scale for all features, then norm sqrt(d)."""
    mean = task.x_train.mean()
    train, test = (x - mean for x in (task.x_train, task.x_test))
    on = [x * (x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)) for x in (train, test)]
    return replace(task, x_train=on[0], x_test=on[1])


def _shallow_and_deep(made: Design, task: Task, width: int, seed: int) -> dict[str, nn.Module]:
    d, c = task.x_train.shape[1], task.outputs
    makers = {
        "deep": lambda: _relu(d, width, 4, c),
        "mimic": lambda: made.network(d, width, c),
        "relu": lambda: _relu(d, width, 1, c),
        "relu_again": lambda: _relu(d, width, 1, c),
    }
    nets: dict[str, nn.Module] = {}
    for i, (name, make) in enumerate(makers.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("init", seed, i))
            nets[name] = make()
    return nets


def _descend(net: nn.Module, task: Task, settings: MimicCurves) -> Descent:
    return descend(net, task.x_train, task.y_train, task.x_test, task.y_test, settings.rate, settings.steps)


def _relu(d: int, width: int, depth: int, out: int) -> nn.Module:
    """The named network of ``models.design``."""
    return mlp(d, width, depth, out, "relu", b_std=0.1)


def _best_scale(kernel: Tensor, target: Tensor) -> float:
    """The scale of least largest error: between the two extreme ratios."""
    scales = torch.linspace(float((target / kernel).min()), float((target / kernel).max()), 2001, dtype=torch.float64)
    return float(scales[(scales[:, None] * kernel - target).abs().amax(1).argmin()])


def _distance(kernel: object, settings: Mimics, seed: int) -> float:
    task = digits(n_train=settings.n_train, n_test=settings.n_test, seed=seed_of("data", seed))
    x, n = torch.cat([task.x_train, task.x_test]).double(), settings.n_train
    assert callable(kernel)
    found = [
        KernelPredictor(gram[:n, :n]).fit(task.y_train).predict(gram[n:, :n])
        for gram in (kernel(x), infinite_width(_relu(x.shape[1], 1, 4, 1))(x).ntk)
    ]
    return relative_l2(found[0], found[1])
