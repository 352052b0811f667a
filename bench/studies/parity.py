"""Parity and other monomials on the hypercube: what engineered kernels and trained networks make of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import store
from bench.predict import KernelPredictor
from bench.record import Record, summarise
from bench.studies.panel import Curve, Panel, named_panel, page, places
from bench.studies.plain_descent import descend
from bench.studies.study import result
from bench.trained import seed_of
from models.activations import Sin
from models.design import design
from models.layers import Linear
from models.limits import infinite_width
from models.mlp import mlp
from tasks.hypercube import monomial, parity
from tasks.task import Task

FREQUENCY, AMPLITUDE = 6.0, 0.5
NETS = {
    "sine_kernel": "kernel, sine", "relu_kernel": "kernel, 4 ReLU", "sine_net": "network, sine",
    "relu_net": "network, ReLU",
}  # fmt: skip


@dataclass(frozen=True)
class Parity:
    """Settings: the full parity of ``bits`` bits, half of all points for training; networks of ``width``."""

    bits: int = 9
    width: int = 128
    rate: float = 0.2
    steps: int = 1500
    until: float = 1e-3
    seeds: tuple[int, ...] = tuple(range(8))


def parity_networks(settings: Parity) -> Record:
    """Regression with the NTK of sin(6 z) / 2 and of 4-hidden-layer ReLU, and trained shallow networks of sin and ReLU.

    Arrays, all [seeds]: ``accuracy_<what>`` and ``learnability_<what>`` (``<y, f> / <y, y>`` on the test points) for
    ``sine_kernel``, ``relu_kernel``, ``sine_net`` and ``relu_net``; ``antipodes``, the share of test points whose
    antipode is a training point.
    """
    columns: dict[str, list[float]] = {}
    half = 2 ** (settings.bits - 1)
    for seed in settings.seeds:
        task = parity(d=settings.bits, k=settings.bits, n_train=half, n_test=half, seed=seed_of("data", seed))
        found = {
            "sine_kernel": _regression(task, sine_kernel(task)),
            "relu_kernel": _regression(task, _relu_kernel(task, 4)),
            "sine_net": _trained(_sine(settings.bits, settings.width), task, settings, seed),
            "relu_net": _trained(mlp(settings.bits, settings.width, 1, 1, "relu", b_std=0.1), task, settings, seed),
        }
        y = task.y_test.double()
        row = {f"accuracy_{name}": float(((f > 0) == (y > 0)).double().mean()) for name, f in found.items()}
        row |= {f"learnability_{name}": float((f * y).mean()) for name, f in found.items()}
        trained = {tuple(x) for x in task.x_train.tolist()}
        row["antipodes"] = float(np.mean([tuple(x) in trained for x in (-task.x_test).tolist()]))
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    arrays = {name: np.array(values) for name, values in columns.items()}
    scores = tuple(summarise(name, list(values), settings.seeds) for name, values in arrays.items())
    trained_ones = np.array([name.endswith("_net") for name in NETS])
    for what in ("accuracy", "learnability"):
        all_of = np.stack([arrays[f"{what}_{name}"] for name in NETS], 1)
        arrays[f"{what}_of_kernels"] = np.where(trained_ones, np.nan, all_of)
        arrays[f"{what}_of_networks"] = np.where(trained_ones, all_of, np.nan)
    arrays["seen"] = np.where(trained_ones, np.nan, arrays["antipodes"][:, None])
    arrays |= {"chance": np.full((1, len(NETS)), 0.5), **places(tuple(NETS))}
    return result(scores, arrays, {**store.plain(settings), **_parity_page(settings)})


def _parity_page(settings: Parity) -> dict[str, Any]:
    labels = tuple(NETS.values())
    panels = (
        named_panel("Accuracy on unseen points", labels, "accuracy",
                    (Curve("kernel", "accuracy_of_kernels", "kernel"), Curve("chance", "chance", "reference"),
                     Curve("network", "accuracy_of_networks", "network")), what="learner"),
        named_panel("Learnability", labels, "<y, f> / <y, y>",
                    (Curve("kernel", "learnability_of_kernels", "kernel"),
                     Curve("share of antipodes seen", "seen", "theory"),
                     Curve("network", "learnability_of_networks", "network")), what="learner"),
    )  # fmt: skip
    text = (
        f"The parity of all {settings.bits} bits, from half of the points. Regression with the kernel of sin(6 z) / 2, "
        "engineered for it, learns of it the share of points whose antipode it saw, and classifies the others at "
        f"chance: that an engineered kernel solves parity is refuted. Beside it trained networks of width "
        f"{settings.width}, which learn features."
    )
    return page(f"Parity of {settings.bits} bits: kernels and networks", text, panels)


@dataclass(frozen=True)
class Monomials:
    """Settings: monomials of degree 1 to 5 on the ``d``-cube, ``n`` training points; shallow nets of ``width``."""

    d: int = 10
    n: int = 256
    n_test: int = 500
    seeds: tuple[int, ...] = tuple(range(8))


def monomials(settings: Monomials) -> Record:
    """Test errors of regressions, relative to the target's mean square.

    Arrays: ``levels`` [seeds, 5], with the NTK of two hidden ReLU layers on monomials of degree 1 to 5 (scores
    ``degree_1`` to ``degree_5``); ``product_accuracy`` [seeds], its accuracy on x1 x2; ``random`` and
    ``random_accuracy``, error and accuracy on random signs; for x1 x2 x3 ``designed`` (K = c^3 + c / 100) and
    ``relu_<depth>``; ``a_3`` and ``a_3_shuffled``, the coefficient of c^3 that ``design((X, y))`` finds (of a sum of
    1), and with shuffled labels.
    """
    columns: dict[str, list[float | list[float]]] = {}
    for seed in settings.seeds:
        cubes = [
            monomial(d=settings.d, indices=list(range(k)), n_train=settings.n, n_test=settings.n_test,
                     seed=seed_of("data", seed))
            for k in range(1, 6)
        ]  # fmt: skip
        cubic = cubes[2]
        c = _points(cubic) @ cubic.x_train.double().T / settings.d
        generator = torch.Generator().manual_seed(seed_of("labels", seed))
        signs = torch.randn(settings.n + settings.n_test, 1, generator=generator).sign().double()
        kernels = [_relu_kernel(task, 2) for task in cubes]
        fitted = [_regression(task, kernel) for task, kernel in zip(cubes, kernels, strict=True)]
        f = _regression(cubic, kernels[2], signs[: settings.n])
        row: dict[str, float | list[float]] = {
            "levels": [_relative_error(task, g) for task, g in zip(cubes, fitted, strict=True)],
            "product_accuracy": _accuracy(fitted[1], cubes[1].y_test),
            "random": float((f - signs[settings.n :]).square().mean()),
            "random_accuracy": _accuracy(f, signs[settings.n :]),
            "designed": _error(cubic, c**3 + 0.01 * c),
            "relu_1": _error(cubic, _relu_kernel(cubic, 1)),
            "relu_2": _relative_error(cubic, fitted[2]),
            "relu_4": _error(cubic, _relu_kernel(cubic, 4)),
            "a_3": _coefficient(cubic.x_train, cubic.y_train),
            "a_3_shuffled": _coefficient(cubic.x_train, cubic.y_train[torch.randperm(settings.n, generator=generator)]),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    arrays = {name: np.array(values) for name, values in columns.items()}
    levels = {f"degree_{k + 1}": arrays["levels"][:, k] for k in range(5)}
    single = {name: values for name, values in arrays.items() if values.ndim == 1}
    scores = tuple(summarise(name, list(values), settings.seeds) for name, values in (levels | single).items())
    of_kernels, labels = ("designed", "relu_1", "relu_2", "relu_4"), ("a_3", "a_3_shuffled")
    arrays |= {
        "degree": np.arange(1, 6),
        "cubic": np.stack([arrays[name] for name in of_kernels], 1),
        **places(of_kernels),
    }
    arrays |= {"found": np.stack([arrays[name] for name in labels], 1), "labelled": np.arange(len(labels))}
    error = "test error / mean square of the target"
    panels = (
        Panel("Monomials by degree, two ReLU layers", "degree", "degree", error,
              (Curve("two layers", "levels", "kernel"),)),
        named_panel("x1 x2 x3, by kernel", ("c^3 + c / 100", "1 layer", "2 layers", "4 layers"), error,
                    (Curve("test error", "cubic", "kernel"),), what="kernel"),
        Panel("What design((X, y)) finds", "labelled", "labels", "a_3, share of c^3",
              (Curve("a_3", "found", "kernel"),), ticks=("x1 x2 x3", "shuffled labels")),
    )  # fmt: skip
    text = (
        f"Regression from {settings.n} points of the {settings.d}-cube, with NTKs of ReLU layers and with a kernel "
        "designed for degree 3. a_3 is the share of c^3 that design((X, y)) finds for x1 x2 x3 from the data alone. "
        "Among the scores also test error and accuracy on random signs (random)."
    )
    return result(scores, arrays, {**store.plain(settings), **page("Monomials: what a kernel is for", text, panels)})


def sine_kernel(task: Task) -> Tensor:
    """NTK [n_train + n_test, n_train] of A sin(w z): ``A^2 exp(-w^2) (sinh(w^2 c) + w^2 c cosh(w^2 c))``."""
    c = _points(task) @ task.x_train.double().T / task.x_train.shape[1]
    w = FREQUENCY**2
    up, down = torch.exp(w * (c - 1)), torch.exp(-w * (c + 1))
    return AMPLITUDE**2 / 2 * (up - down + w * c * (up + down))


def _sine(d: int, width: int) -> nn.Module:
    """A sin(w z) between two layers: the frequency is the scale of the first, the amplitude that of the last.

    As parameters are N(0, 1) and scaled outside, the kernel is that of an activation A sin(w z).
    """
    return nn.Sequential(nn.Flatten(1), Linear(d, width, FREQUENCY), Sin(), Linear(width, 1, AMPLITUDE))


def _relu_kernel(task: Task, depth: int) -> Tensor:
    x = _points(task)
    return infinite_width(mlp(x.shape[1], 1, depth, 1, "relu", b_std=0.1))(x, task.x_train.double()).ntk


def _points(task: Task) -> Tensor:
    return torch.cat([task.x_train, task.x_test]).double()


def _regression(task: Task, kernel: Tensor, y: Tensor | None = None) -> Tensor:
    """[n_test, c]."""
    n = task.n_train
    return KernelPredictor(kernel[:n]).fit(task.y_train if y is None else y).predict(kernel[n:])


def _error(task: Task, kernel: Tensor) -> float:
    return _relative_error(task, _regression(task, kernel))


def _relative_error(task: Task, f: Tensor) -> float:
    y = task.y_test.double()
    return float((f - y).square().sum() / y.square().sum())


def _accuracy(f: Tensor, signs: Tensor) -> float:
    return float((f.sign() == signs).double().mean())


def _trained(net: nn.Module, task: Task, settings: Parity, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("init", seed))
        for module in net.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    data = task.x_train, task.y_train, task.x_test, task.y_test
    return descend(net, *data, settings.rate, settings.steps, settings.until).f_test.double()


def _coefficient(x: Tensor, y: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # heavy tails
        return design((x, y)).target.taylor(3)[3]
