"""Convolutional against fully connected, on images: kernels and trained networks, and the same with pixels permuted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench import store
from bench.compare.alignment import alignment, area, cumulative_power, power_at
from bench.compare.metrics import agreement, relative_error
from bench.predict import KernelPredictor
from bench.record import Record, summarise
from bench.studies.panel import Curve, Panel, named_panel, page, places
from bench.studies.patches import (
    patch_net,
    patch_ntk,
    permuted_pixels,
    random_filter_kernel,
    scrambled_pixels,
    whitened_patches,
)
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, seed_of
from models.limits import infinite_width
from models.mlp import mlp
from tasks.images import cifar10, fashion_mnist
from tasks.inputs import prepare
from tasks.task import Task

Images = Literal["cifar10", "cifar10_grey", "fashion_mnist"]
SETS = {"cifar10": (cifar10, 2), "cifar10_grey": (cifar10, 2), "fashion_mnist": (fashion_mnist, 4)}
"""The maker, and the padding with which patches lie on a 16 x 16 grid."""
CELLS = 4  # the grid is averaged over 4 x 4 parts

LABELS = {
    "connected": "connected", "convolution": "convolution", "convolution_permuted": "pixels permuted",
    "convolution_scrambled": "pixels scrambled",
}  # fmt: skip
SEEN = tuple(LABELS)

_OF_CIFAR = (("plane", "ship"), ("cat", "dog"), ("deer", "horse"), ("car", "truck"), ("bird", "frog"))
PAIRS = {
    "cifar10": _OF_CIFAR,
    "cifar10_grey": _OF_CIFAR,
    "fashion_mnist": (("tshirt", "shirt"), ("pullover", "coat"), ("sneaker", "boot")),
}


@dataclass(frozen=True)
class Convolution:
    """Settings: each seed draws images of each pair, and one permutation of the pixels.

    Attributes:
        pairs: of classes; none: those of ``PAIRS``.
        images: "cifar10_grey": the mean over the channels instead of colours, for every kernel.
        stride: of the patches, 5 x 5 pixels each; an exact kernel costs one over its fourth power.
        kernel: "exact", the NTK of one convolution on whitened patches at infinite width; "random", the kernel of
            ``filters`` random filters, tens of times cheaper.
        width: of trained networks beside the kernels; 0 trains none.
    """

    images: Images = "cifar10"
    pairs: tuple[tuple[str, str], ...] = ()
    n_train: int = 200
    n_test: int = 300
    stride: int = 2
    kernel: Literal["exact", "random"] = "random"
    filters: int = 256
    width: int = 0
    richness: float = 1.0
    seeds: tuple[int, ...] = tuple(range(8))


def convolution(settings: Convolution) -> Record:
    """Ridgeless regression and alignment with each kernel, and networks of both kinds.

    Arrays ``<metric>_<kernel>`` [seeds, pairs]: kernels ``connected`` (three hidden ReLU layers), ``convolution``,
    ``convolution_permuted`` (the pixels, in one order for all images) and ``convolution_scrambled`` (in another order
    for each); metrics ``class_error``, ``test_error`` (relative), ``alignment`` (centred), ``area`` (under C) and
    ``power_quarter`` (C(.25)). With networks also ``class_error_<kernel>_net``. Scores: means over the pairs, and
    ``error saved by <kernel>``, the class error less than that of ``connected``.
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
    saved = {
        f"error saved by {name}": arrays["class_error_connected"] - arrays[f"class_error_{name}"] for name in SEEN[1:]
    }
    means = {name: list(values.mean(1)) for name, values in (arrays | saved).items()}
    scores = tuple(summarise(name, values, settings.seeds) for name, values in means.items())
    names = tuple("/".join(pair) for pair in pairs)
    return result(scores, arrays | places(names), {**store.plain(settings), "pairs": pairs, **_page(settings, names)})


def _page(settings: Convolution, names: tuple[str, ...]) -> dict[str, Any]:
    def panel(title: str, metric: str, networks: bool = False) -> Panel:
        curves = [Curve(label, f"{metric}_{kernel}", "kernel") for kernel, label in LABELS.items()]
        if networks:
            curves += [Curve(label, f"{metric}_{kernel}_net", "network") for kernel, label in LABELS.items()]
        return named_panel(title, names, title[0].lower() + title[1:], tuple(curves), what="pair")

    panels = (
        panel("Class error", "class_error", settings.width > 0),
        panel("Area under C", "area"),
        panel("Centred alignment", "alignment"),
    )
    limit = "at infinite width" if settings.kernel == "exact" else f"of {settings.filters} random filters"
    text = (
        f"{settings.n_train} training images of two classes of {settings.images}: ridgeless regression with the NTK of "
        "three connected layers, and with the kernel of one convolution on whitened 5 x 5 patches, averaged over "
        f"{CELLS} x {CELLS} parts, {limit}. Permuted: the pixels of all images in one random order, which a connected "
        "network does not see; patches are then random sets of pixels. Scrambled: in another order for each image, so "
        "that only the distribution of its colours is left. Grey images (the mean over the channels) have no colours."
    )
    return page(f"Convolutional against fully connected: {settings.images}", text, panels)


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
    """The same images as vectors on the sphere, and as whitened patches of themselves, permuted and scrambled."""
    make, padding = SETS[settings.images]
    draw: dict[str, Any] = {
        "classes": pair,
        "n_train": settings.n_train,
        "n_test": settings.n_test,
        "seed": seed_of("data", seed),
    }
    raw = make(**draw, inputs="raw")
    images, n = torch.cat([raw.x_train, raw.x_test]), settings.n_train
    if settings.images == "cifar10_grey":
        images = images.mean(1, keepdim=True)
    on_sphere = prepare(raw.name, images[:n], images[n:], "sphere")
    connected = replace(raw, x_train=on_sphere[0], x_test=on_sphere[1])
    tasks = {"connected": connected}
    mixed = seed_of("pixels", seed)
    kinds = images, permuted_pixels(images, mixed), scrambled_pixels(images, mixed)
    for name, x in zip(SEEN[1:], kinds, strict=True):
        patches = whitened_patches(x, n, stride=settings.stride, padding=padding)
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
