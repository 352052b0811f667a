"""A designed activation placed in networks on images: exact limit, the kernel it was designed for, trained networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import store
from bench.compare.metrics import agreement, r2
from bench.predict import KernelPredictor
from bench.record import Record, summarise
from bench.studies.panel import Curve, named_panel, page, places
from bench.studies.patches import whitened_patches
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Trained, members, seed_of
from models.cnn import cnn
from models.design import Design, design
from models.limits import infinite_width
from models.mlp import mlp
from models.resnet import resnet
from tasks.images import fashion_mnist
from tasks.task import Task

SIZE = 7  # images are averaged down to this many pixels a side
SMALL = 4  # those of the residual network, whose limit has the covariance of every pair of pixels
GRID = 4  # patches a side, of the 14 x 14 image
CONNECTED = 1024  # hidden units
NETWORKS = ("connected", "patches", "cnn", "resnet")
DEEP = "relu:4"  # the target whose network there is on each patch


@dataclass(frozen=True)
class DesignedImages:
    """Settings: each seed draws images of two classes; ``inits`` networks of ``width`` (but ``CONNECTED``)."""

    target: str = "relu:4"
    classes: tuple[str, str] = ("tshirt", "shirt")
    n_train: int = 60
    n_test: int = 60
    width: int = 128
    inits: int = 2
    seeds: tuple[int, ...] = (0, 1)


def designed_images(settings: DesignedImages) -> Record:
    """The design in four networks, and ReLU in the same four.

    Networks: ``connected`` (one hidden layer, for which it was designed), ``patches`` (a convolution that sees whitened
    patches of one norm, averaged over positions: there the kernel designed for carries over, as its mean over pairs of
    patches), ``cnn`` (one 3 x 3 convolution, read out at every pixel) and ``resnet`` (a stem and one block).

    Arrays [seeds, networks], and scores ``<network>/<array>``: ``to_designed``, the distance of the exact limit from
    the kernel designed for, relative, at the best scale; ``to_deep``, from the limit of ``patches`` with four hidden
    ReLU layers on each patch (nan for the others, and for targets other than "relu:4"); ``initial``, the distance of
    K_0 from the limit; ``r2``, of regression with the limit against the trained networks; ``limit_error`` and
    ``net_error``, their test errors in class; and the last four with ``_relu`` for ReLU.
    """
    made = design(settings.target)
    rows: dict[str, list[list[float]]] = {}
    for seed in settings.seeds:
        columns: dict[str, list[float]] = {}
        for name, (task, kernel, build) in _networks(made, settings, seed).items():
            net = build(made.activation)
            limit = infinite_width(net)(_points(task)).ntk
            row = {"to_designed": _distance(limit, kernel), "to_deep": math.nan}
            if name == "patches" and settings.target == DEEP:
                row["to_deep"] = _distance(limit, infinite_width(_deep_patches(task))(_points(task)).ntk)
            row |= _trained(task, net, limit, settings, seed, "")
            plain = build(nn.ReLU())
            row |= _trained(task, plain, infinite_width(plain)(_points(task)).ntk, settings, seed, "_relu")
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
        for key, values in columns.items():
            rows.setdefault(key, []).append(values)
    arrays = {key: np.array(values) for key, values in rows.items()}
    scores = [
        summarise(f"{name}/{key}", list(values[:, i]), settings.seeds)
        for i, name in enumerate(NETWORKS)
        for key, values in arrays.items()
        if np.isfinite(values[:, i]).all()
    ]
    return result(tuple(scores), arrays | places(NETWORKS), {**store.plain(settings), **_page(settings)})


def _page(settings: DesignedImages) -> dict[str, Any]:
    panels = (
        named_panel("Kernels", NETWORKS, "relative distance",
                    (Curve("limit to the kernel designed for", "to_designed", "theory"),
                     Curve("start to limit, designed", "initial", "network"),
                     Curve("start to limit, ReLU", "initial_relu", "network")), True, "network"),
        named_panel("Regression with the limit, against trained networks", NETWORKS, "R2",
                    (Curve("designed", "r2", "kernel"), Curve("ReLU", "r2_relu", "kernel")), what="network"),
        named_panel("Test error in class", NETWORKS, "test error",
                    (Curve("designed", "limit_error", "kernel"), Curve("designed", "net_error", "network"),
                     Curve("ReLU", "limit_error_relu", "kernel"), Curve("ReLU", "net_error_relu", "network")),
                    what="network"),
    )  # fmt: skip
    text = (
        f"The activation designed for {settings.target}, in four networks of width {settings.width} (the connected "
        f"one: {CONNECTED}) on {settings.n_train} images of {' and '.join(settings.classes)}, beside ReLU in the same "
        "four. The limits are exact, of these very networks. Where all that enters the activation has one norm "
        "(connected; patches, whose kernel is the mean over pairs of patches) the limit is the kernel designed for; "
        "elsewhere norms differ, and the limit is another kernel, which the trained networks follow."
    )
    return page(f"The activation designed for {settings.target}, in four networks", text, panels)


Network = tuple[Task, Tensor, Callable[[nn.Module], nn.Module]]


def _networks(made: Design, settings: DesignedImages, seed: int) -> dict[str, Network]:
    """Name -> task, the kernel designed for on its points, and the network with a given activation."""
    draw: dict[str, Any] = {"classes": settings.classes, "n_train": settings.n_train, "n_test": settings.n_test,
            "seed": seed_of("data", seed)}  # fmt: skip
    task, small = (fashion_mnist(**draw, size=size) for size in (SIZE, SMALL))
    larger = fashion_mnist(**draw, size=2 * SIZE, inputs="raw")
    patches = whitened_patches(torch.cat([larger.x_train, larger.x_test]), settings.n_train, stride=3, padding=1)
    n, entries = settings.n_train, patches.shape[1]
    seen = dataclasses.replace(task, x_train=patches[:n], x_test=patches[n:])
    on_patches = patches.double().permute(0, 2, 3, 1).reshape(-1, entries)
    pairs = made.target.kernel((on_patches @ on_patches.T / entries).clamp(-1, 1).flatten())
    mean = pairs.reshape(len(patches), GRID**2, len(patches), GRID**2).mean((1, 3))
    # Unit weights and no biases, so that what enters the activation has variance 1 for inputs on the sphere.
    plain: dict[str, Any] = {"w_std": 1.0, "b_std": None}
    return {
        "connected": (task, _on_images(made, task), lambda phi: mlp(SIZE**2, CONNECTED, 1, 1, phi, **plain)),
        "patches": (seen, mean, lambda phi: cnn(entries, settings.width, 1, 1, phi, "gap", None, 1, **plain)),
        "cnn": (task, _on_images(made, task), lambda phi: cnn(1, settings.width, 1, 1, phi, "flatten", SIZE, **plain)),
        "resnet": (small, _on_images(made, small), lambda phi: resnet(1, settings.width, 1, 1, phi, **plain)),
    }


def _on_images(made: Design, task: Task) -> Tensor:
    """The kernel designed for, of the cosine between whole images."""
    x = _points(task).flatten(1)
    return made.target.kernel((x @ x.T / x.shape[1]).clamp(-1, 1).flatten()).reshape(len(x), len(x))


def _deep_patches(task: Task) -> nn.Module:
    return cnn(task.x_train.shape[1], 1, 4, 1, "relu", "gap", None, 1, b_std=0.1)


def _points(task: Task) -> Tensor:
    return torch.cat([task.x_train, task.x_test]).double()


def _distance(one: Tensor, two: Tensor) -> float:
    scale = (one * two).sum() / one.square().sum()
    return float((scale * one - two).norm() / two.norm())


def _trained(
    task: Task, net: nn.Module, limit: Tensor, settings: DesignedImages, seed: int, suffix: str
) -> dict[str, float]:
    n = task.n_train
    trainer = Trainer(richness="ntk", tolerance=1e-2, accelerated=True, step=1.0, snapshots=2)
    trained = trainer.fit(net, [task], [dataclasses.replace(m, init=1000 * seed + m.init) for m in
                                        members(1, settings.inits)])  # fmt: skip
    f = KernelPredictor(limit[:n, :n]).fit(task.y_train).predict(limit[n:, :n])
    outputs = trained.f_T[:, n:]
    return {
        f"initial{suffix}": float(np.mean([_start(trained, i, limit) for i in range(settings.inits)])),
        f"r2{suffix}": float(np.mean([r2(f, output) for output in outputs])),
        f"limit_error{suffix}": 1 - agreement(f, task.y_test),
        f"net_error{suffix}": float(np.mean([1 - agreement(output, task.y_test) for output in outputs])),
    }


def _start(trained: Trained, member: int, limit: Tensor) -> float:
    kernel: Tensor = trained.kernels([member], 0, _points(trained.tasks[0]), outputs=0)[0]
    return float((kernel - limit).norm() / limit.norm())
