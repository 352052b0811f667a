"""Designed activations in finite networks: the noise of their kernels, and the networks that they stand in for."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bench.compare.metrics import relative_l2
from bench.ntk import empirical_ntk
from bench.predict import KernelPredictor
from bench.record import Record
from bench.studies.plain_descent import Descent, descend
from bench.studies.published_mimic import published_kernel
from bench.studies.study import result
from bench.trained import seed_of
from models.design import Design, Hermite, design, hermite_activation
from models.layers import Linear
from models.limits import infinite_width
from models.mlp import mlp
from tasks.tabular import breast_cancer, digits, wine
from tasks.task import Task

TABLES = {"breast_cancer": breast_cancer, "wine": wine}


@dataclass(frozen=True)
class DesignNoise:
    """Settings: the first coefficients of exp(c - 1) as NTK; each seed is ``n`` points, ``nets`` nets a width."""

    order: int = 5
    n: int = 24
    d: int = 8
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    nets: int = 8
    seeds: tuple[int, ...] = tuple(range(8))


def design_noise(settings: DesignNoise) -> Record:
    """Root mean square over networks and entries of ``K_m - K``, in units of K(1).

    Arrays: ``bounded``, ``again`` (other networks), ``plus`` (all signs +), ``unlike`` (against the NNGP)
    and ``predicted``, ``predicted_flat`` (the noise at c = 1 for each entry), all [seeds, widths]; ``widths``.
    """
    a = [math.exp(-1) / math.factorial(k) for k in range(settings.order + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # heavy tails
        made = design(a)
    bounded = hermite_activation(a)
    plus = Hermite([abs(b) for b in bounded.coefficients])
    columns: dict[str, list[list[float]]] = {}
    for seed in settings.seeds:
        x = _sphere(settings.n, settings.d, seed_of("data", seed))
        c, exact = x @ x.T / settings.d, made.kernel(x)
        unlike = sum(a_k / (1 + k) * c**k for k, a_k in enumerate(a))
        rows: dict[str, list[float]] = {}
        for width in settings.widths:
            kernels = {
                name: _kernels(phi, settings, width, seed_of(axis, seed, width), x)
                for name, phi, axis in (
                    ("bounded", bounded, "init"),
                    ("again", bounded, "again"),
                    ("plus", plus, "init"),
                )
            }
            errors = {name: k - exact for name, k in kernels.items()} | {"unlike": kernels["bounded"] - unlike}
            flat = made.certificate.standard_deviation(width)
            row = {name: float(e.square().mean().sqrt()) / made.certificate.at_one for name, e in errors.items()}
            row["predicted"] = float(made.certificate.standard_deviation(width, c).square().mean().sqrt())
            row["predicted_flat"] = float(flat)
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    return result(arrays={name: np.array(v) for name, v in columns.items()} | {"widths": np.array(settings.widths)})


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
    """
    theta = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    circle = math.sqrt(2) * torch.stack([torch.cos(theta), torch.sin(theta)], 1)
    made = design("relu:4")
    target = infinite_width(_relu(2, 1, 4, 1))(circle).ntk[0]
    scale = _best_scale(infinite_width(_relu(2, 1, 1, 1))(circle).ntk[0], target)
    errors, distances = {}, {}
    for name, kernel in (
        ("design", made.kernel),
        ("published", published_kernel),
        ("relu", lambda x: scale * infinite_width(_relu(x.shape[1], 1, 1, 1))(x).ntk),
    ):
        errors[name] = float((kernel(circle)[0] - target).abs().max() / target[0])
        distances[name] = [_distance(kernel, settings, seed) for seed in settings.seeds]
    arrays = {f"error_{name}": np.array([value]) for name, value in errors.items()}
    return result(arrays=arrays | {f"regression_{name}": np.array(values) for name, values in distances.items()})


@dataclass(frozen=True)
class MimicCurves:
    """Settings: each seed is a data draw and initialisations; ``rate`` and ``steps`` of descent are those of all."""

    task: str = "breast_cancer"
    n_train: int = 100
    n_test: int = 78
    width: int = 256
    rate: float = 0.2
    steps: int = 200
    seeds: tuple[int, ...] = tuple(range(10))


def mimic_curves(settings: MimicCurves) -> Record:
    """Loss curves of a deep ReLU network, its shallow mimic and shallow ReLU networks, all centred.

    Arrays ``gap_<net>_train`` and ``..._test`` [seeds]: mean over steps of the distance between the losses of ``net``
    and of the deep network; nets ``mimic``, ``relu`` and ``relu_again`` (of another init).
    """
    made = design("relu:4")
    columns: dict[str, list[float]] = {}
    for seed in settings.seeds:
        task = _published_inputs(
            TABLES[settings.task](
                n_train=settings.n_train, n_test=settings.n_test, seed=seed_of("data", seed), inputs="raw"
            )
        )
        nets = _shallow_and_deep(made, task, settings.width, seed)
        runs = {name: _descend(net, task, settings) for name, net in nets.items()}
        for name in ("mimic", "relu", "relu_again"):
            for part in ("train", "test"):
                gap = (getattr(runs[name], part) - getattr(runs["deep"], part)).abs().mean()
                columns.setdefault(f"gap_{name}_{part}", []).append(float(gap))
    return result(arrays={name: np.array(values) for name, values in columns.items()})


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


def _sphere(n: int, d: int, seed: int) -> Tensor:
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True) * d**0.5


def _kernels(phi: nn.Module, settings: DesignNoise, width: int, seed: int, x: Tensor) -> Tensor:
    """[nets, n, n]."""
    net = nn.Sequential(Linear(settings.d, width), phi, Linear(width, 1)).double()
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: torch.randn(settings.nets, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in net.named_parameters()
    }
    found = empirical_ntk(net, x, outputs=0, params=params)
    assert isinstance(found, Tensor)
    return found


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
