"""From the after-kernel to the exact answer: the network's kernel, held fixed between ever more snapshots of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from bench.compare.metrics import network_outputs, r2, train_labels
from bench.compare.predictions import empirical, empirical_predictions
from bench.predict import course
from bench.record import Record
from bench.studies.scored_networks import ScoredNetworks, train
from bench.studies.study import result
from bench.trained import Trained

LEVELS = (0.75, 0.5, 0.35, 0.2, 0.1, 0.03, 0.003)
"""Relative train losses of the snapshots between the first and the last: the kernel moves most early on."""


@dataclass(frozen=True)
class SnapshotHierarchy:
    """Settings: one network a seed, staircase; ``parts``: into how many stretches training is divided."""

    richness: float = 0.3
    parts: tuple[int, ...] = (1, 2, 4, 8)
    width: int = 256
    n_train: int = 128
    seeds: tuple[int, ...] = tuple(range(8))


def snapshot_hierarchy(settings: SnapshotHierarchy) -> Record:
    """R2 to the network at its end, on test points.

    ``after`` [seeds]: regression with K_T. ``ordered`` [seeds, parts]: gradient descent from f_0 with the network's own
    steps, the kernel of each stretch of training being the mean of those at its two ends (the trapezoid rule). With a
    stretch a step it would be the path kernel, exact up to the step. Controls, of the most parts: ``reversed`` [seeds],
    the stretches' kernels in reverse order of time; ``frozen`` [seeds], K_T in every stretch.
    """
    trainer = {"richness": settings.richness, "schedule": "loss", "levels": LEVELS}
    trained = train(ScoredNetworks("staircase", settings.width, trainer, (), settings.seeds,
                                   {"n_train": settings.n_train}))  # fmt: skip
    after = empirical_predictions(trained, -1, "y", "init", 0.0)
    arrays: dict[str, list[float | list[float]]] = {"after": [], "ordered": [], "reversed": [], "frozen": []}
    for i in range(len(settings.seeds)):
        kernels = [empirical(trained, i, k) for k in range(trained.snapshots)]
        most = max(settings.parts)
        arrays["after"].append(r2(after[i], network_outputs(trained, i)))
        arrays["ordered"].append([_r2(trained, i, kernels, parts) for parts in settings.parts])
        arrays["reversed"].append(_r2(trained, i, kernels, most, backwards=True))
        arrays["frozen"].append(_r2(trained, i, kernels[-1:] * len(kernels), most))
    return result(arrays={**{name: np.array(rows) for name, rows in arrays.items()}, "parts": np.array(settings.parts)})


def _r2(trained: Trained, member: int, kernels: list[Tensor], parts: int, backwards: bool = False) -> float:
    chosen = np.linspace(0, len(kernels) - 1, parts + 1).round().astype(int).tolist()
    stretches = [(kernels[a] + kernels[b]) / 2 for a, b in pairwise(chosen)]
    if backwards:
        stretches.reverse()
    history, n = trained.history[member], trained.task(member).n_train
    f = trained.f_0[member].double()
    ends = history.snapshot_steps[chosen].tolist()
    for kernel, (begin, end) in zip(stretches, pairwise(ends), strict=True):
        if end > begin:
            f = course(kernel, train_labels(trained, member), history.steps[begin:end], [end - begin], f_0=f)[0]
    return r2(f[n:], network_outputs(trained, member))
