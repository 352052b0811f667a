"""Convolutional against fully connected, on images: kernels and trained networks, and the same with pixels permuted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.compare.alignment import alignment, area, cumulative_power, power_at
from bench.compare.metrics import agreement, relative_error
from bench.predict import KernelPredictor
from bench.record import Record, summarise
from bench.studies.patches import patch_net, patch_ntk, permuted_pixels, random_filter_kernel, whitened_patches
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, seed_of
from models.limits import infinite_width
from models.mlp import mlp
from tasks.images import cifar10, fashion_mnist
from tasks.task import Task

SETS = {"cifar10": (cifar10, 2), "fashion_mnist": (fashion_mnist, 4)}
"""The maker, and the padding with which patches lie on a 16 x 16 grid."""
CELLS = 4  # the grid is averaged over 4 x 4 parts

PAIRS = {
    "cifar10": (("plane", "ship"), ("cat", "dog"), ("deer", "horse"), ("car", "truck"), ("bird", "frog")),
    "fashion_mnist": (("tshirt", "shirt"), ("pullover", "coat"), ("sneaker", "boot")),
}


@dataclass(frozen=True)
class Convolution:
    """Settings: each seed draws images of each pair, and one permutation of the pixels.

    Attributes:
        pairs: of classes; none: those of ``PAIRS``.
        kernel: "exact", the NTK of one convolution on whitened patches at infinite width; "random", the kernel of
            ``filters`` random filters, tens of times cheaper.
        width: of trained networks beside the kernels; 0 trains none.
    """

    images: str = "cifar10"
    pairs: tuple[tuple[str, str], ...] = ()
    n_train: int = 200
    n_test: int = 300
    kernel: str = "random"
    filters: int = 256
    width: int = 0
    richness: float = 1.0
    seeds: tuple[int, ...] = tuple(range(8))


def convolution(settings: Convolution) -> Record:
    """Ridgeless regression and alignment with each kernel, and networks of both kinds.

    Arrays ``<metric>_<kernel>`` [seeds, pairs]: kernels ``connected`` (three hidden ReLU layers), ``convolution`` and
    ``convolution_permuted``; metrics ``class_error``, ``test_error`` (relative), ``alignment`` (centred), ``area``
    (under C) and ``power_quarter`` (C(.25)). With networks also ``class_error_<kernel>_net``.
    """
    pairs = settings.pairs or PAIRS[settings.images]
    rows: dict[str, list[list[float]]] = {}
    for seed in settings.seeds:
        columns: dict[str, list[float]] = {}
        for pair in pairs:
            for name, value in _pair(settings, pair, seed).items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            rows.setdefault(name, []).append(values)
    arrays = {name: np.array(values) for name, values in rows.items()}
    scores = tuple(summarise(name, list(values.mean(1)), settings.seeds) for name, values in arrays.items())
    return result(scores, arrays, {"title": f"Convolutional against fully connected on {settings.images}",
                                   "kernel": settings.kernel, "pairs": pairs})  # fmt: skip


def _pair(settings: Convolution, pair: tuple[str, str], seed: int) -> dict[str, float]:
    tasks = _tasks(settings, pair, seed)
    found: dict[str, float] = {}
    for name, task in tasks.items():
        found |= {f"{metric}_{name}": value for metric, value in _judged(settings, name, task, seed).items()}
    if settings.width:
        for name, task in tasks.items():
            found[f"class_error_{name}_net"] = _trained(settings, name, task, seed)
    return found


def _tasks(settings: Convolution, pair: tuple[str, str], seed: int) -> Mapping[str, Task]:
    """The same images as vectors on the sphere, as whitened patches, and as whitened patches of permuted images."""
    make, padding = SETS[settings.images]
    draw: dict[str, Any] = {
        "classes": pair,
        "n_train": settings.n_train,
        "n_test": settings.n_test,
        "seed": seed_of("data", seed),
    }
    connected, raw = make(**draw), make(**draw, inputs="raw")
    tasks = {"connected": connected}
    images = torch.cat([raw.x_train, raw.x_test])
    n = settings.n_train
    for name, x in (
        ("convolution", images),
        ("convolution_permuted", permuted_pixels(images, seed_of("pixels", seed))),
    ):
        patches = whitened_patches(x, n, padding=padding)
        tasks[name] = replace(connected, x_train=patches[:n], x_test=patches[n:])
    return tasks


def _judged(settings: Convolution, name: str, task: Task, seed: int) -> dict[str, float]:
    gram, y = _gram(settings, name, task, seed), torch.cat([task.y_train, task.y_test]).double()
    n = settings.n_train
    f = KernelPredictor(gram[:n, :n]).fit(y[:n]).predict(gram[n:, :n])
    power = cumulative_power(gram, y)
    return {
        "class_error": 1 - agreement(f, y[n:]),
        "test_error": relative_error(f, y[n:]),
        "alignment": alignment(gram, y),
        "area": area(power),
        "power_quarter": power_at(power, 0.25),
    }


def _gram(settings: Convolution, name: str, task: Task, seed: int) -> Tensor:
    x = torch.cat([task.x_train, task.x_test])
    if name == "connected":
        return infinite_width(mlp(x[0].numel(), 1, 3, 1, "relu", b_std=0.1))(x.double()).ntk
    if settings.kernel == "exact":
        return patch_ntk(x.double(), CELLS)
    return random_filter_kernel(x, CELLS, settings.filters, seed_of("init", seed))


def _trained(settings: Convolution, name: str, task: Task, seed: int) -> float:
    """The test error of one network, full-batch descent to a relative train MSE of 1 %."""
    net: nn.Module = (
        mlp(task.x_train[0].numel(), 512, 3, 1, "relu", b_std=0.1)
        if name == "connected"
        else patch_net(task.x_train.shape[1], settings.width, task.x_train.shape[2], CELLS)
    )
    trainer = Trainer(richness=settings.richness, tolerance=1e-2, accelerated=True, step=1.0, snapshots=2)
    trained = trainer.fit(net, [task], [Member(0, seed)])
    return 1 - agreement(trained.f_T[0, task.n_train :], task.y_test)
