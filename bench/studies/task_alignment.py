"""Alignment of a kernel with tasks: all pairs of classes of an image set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from bench.diagnose import diagnose
from bench.record import Record
from bench.studies.study import result
from bench.trained import seed_of
from models.limits import infinite_width
from models.mlp import mlp
from tasks.images import FASHION, fashion_mnist


@dataclass(frozen=True)
class Pairs:
    """Settings: each seed draws ``n_train`` and ``n_test`` images of each of the 45 pairs of Fashion-MNIST."""

    n_train: int = 150
    n_test: int = 250
    depth: int = 3
    seeds: tuple[int, ...] = tuple(range(6))


def pairs(settings: Pairs) -> Record:
    """What ``diagnose`` says of the training points alone, beside the test error of regression; the NTK of ReLU layers.

    Arrays, all [seeds, 45]: ``power_tenth``, ``alignment``, ``leave_one_out``, ``predicted`` and ``test_error``.
    """
    limit = infinite_width(mlp(28 * 28, 1, settings.depth, 1, "relu", b_std=0.1))
    rows: dict[str, list[list[float]]] = {}
    for seed in settings.seeds:
        columns: dict[str, list[float]] = {}
        for pair in itertools.combinations(FASHION, 2):
            task = fashion_mnist(
                classes=pair, n_train=settings.n_train, n_test=settings.n_test, seed=seed_of("data", seed)
            )
            blind = diagnose(limit, task.x_train, task.y_train)  # sees no test point
            x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
            whole = diagnose(limit, x, y, settings.n_train)
            row = {"power_tenth": blind.power_tenth, "alignment": blind.alignment, "leave_one_out": blind.leave_one_out,
                   "predicted": whole.predicted, "test_error": whole.measured}  # fmt: skip
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            rows.setdefault(name, []).append(values)
    return result(arrays={name: np.array(values) for name, values in rows.items()})
