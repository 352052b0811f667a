"""When the kernel changes: its direction and its size, at given levels of the loss; and the path kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.path import path_error
from bench.predict import KernelPredictor
from bench.record import Record
from bench.studies.named import make, shapes_of
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, Trained, seed_of
from tasks.hypercube import staircase


@dataclass(frozen=True)
class KernelCourse:
    """Settings: one network a seed; ``levels`` of the relative train MSE, falling."""

    richness: float = 1.0
    levels: tuple[float, ...] = (0.9, 0.1)
    width: int = 256
    n_train: int = 256
    seeds: tuple[int, ...] = tuple(range(8))


@dataclass(frozen=True)
class PathKernel:
    """Settings: one network a seed and c, trained with a dense record of its kernel."""

    steps_c: tuple[float, ...] = (0.3, 0.1)
    time: float = 8.0
    width: int = 128
    n_train: int = 48
    seeds: tuple[int, ...] = tuple(range(5))


def kernel_course(settings: KernelCourse) -> Record:
    """``direction`` and ``size`` [seeds, levels]: the share of the whole way that the kernel has gone at each level.

    Direction: of ``K / |K|``; size: of K itself (Frobenius norms).
    """
    trained = _train(settings.width, settings.n_train, settings.seeds, Trainer(
        richness=settings.richness, schedule="loss", levels=settings.levels, tolerance=1e-4,
    ))  # fmt: skip
    direction, size = [], []
    for i in range(len(settings.seeds)):
        n = trained.task(i).n_train
        kernels = [trained.ntk[i, k][:n, :, 0, 0] for k in range(trained.snapshots)]
        unit = [kernel / kernel.norm() for kernel in kernels]
        inner = range(1, len(settings.levels) + 1)
        direction.append([float((unit[k] - unit[0]).norm() / (unit[-1] - unit[0]).norm()) for k in inner])
        size.append([float((kernels[k] - kernels[0]).norm() / (kernels[-1] - kernels[0]).norm()) for k in inner])
    return result(arrays={"direction": np.array(direction), "size": np.array(size)})


def path_kernel(settings: PathKernel) -> Record:
    """``error`` [seeds, c] of the path-kernel identity, and ``frozen`` [seeds, c]: of K_0 in place of every K_k."""
    errors, frozen = [], []
    for c in settings.steps_c:
        trainer = Trainer(richness=1.0, step=c, constant=True, schedule="dense", tolerance=0.0, time=settings.time)
        trained = _train(settings.width, settings.n_train, settings.seeds, trainer)
        errors.append([path_error(trained, i) for i in range(len(settings.seeds))])
        frozen.append([_frozen_error(trained, i) for i in range(len(settings.seeds))])
    return result(arrays={"c": np.array(settings.steps_c), "error": np.array(errors).T, "frozen": np.array(frozen).T})


def _frozen_error(trained: Trained, member: int) -> float:
    n, kernel, f = trained.task(member).n_train, trained.ntk[member, 0][:, :, 0, 0], trained.f_T[member]
    predictor = KernelPredictor(kernel[:n], time=trained.history[member].steps).fit(trained.task(member).y_train)
    return float((predictor.predict(kernel[n:]) - f[n:]).norm() / f[n:].norm())


def _train(width: int, n_train: int, seeds: tuple[int, ...], trainer: Trainer) -> Trained:
    tasks = [staircase(d=16, n_train=n_train, n_test=128, seed=seed_of("data", seed)) for seed in seeds]
    net = make("model", "mlp", shapes_of(tasks[0]), width=width)
    members = [Member(i, seed) for i, seed in enumerate(seeds)]
    return trainer.fit(net, tasks, members)
