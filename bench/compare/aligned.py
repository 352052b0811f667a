"""Is the kernel aligned with the task, on held-out points: at infinite width, before, during and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.alignment import LEAST, alignment, area, chance, cumulative_power, power_at
from bench.compare.comparison import UnavailableError
from bench.compare.kept import kept
from bench.compare.metrics import clean_labels, train_labels
from bench.compare.motion import train_kernel
from bench.compare.predictions import limit_of
from bench.record import Score, summarise
from bench.trained import Trained
from models.checks import check_count

TENTH = 0.1
"""The share of the modes whose power is a score: it ranks tasks by their test error."""

Shares = Mapping[str, Tensor]
"""The name of a layer -> its share of the NTK at the held-out points, a trace over the outputs, [p, p]."""


@dataclass(frozen=True)
class Alignment:
    """Alignment with the clean labels of test points, of K_inf, K_0 and K_T, and of each layer's share of the last two.

    Scores, with <kernel> one of ``infinite_ntk initial after``: ``alignment/<kernel>`` (centred), ``.../over_chance``
    (divided by its mean over permuted labels), ``.../z`` (above it, in standard deviations over permutations),
    ``.../power_tenth`` (C(.1)), ``.../power_area`` (area under C), ``.../train`` and ``.../train_over_chance`` (on the
    points trained on, where it grows for random labels, too), and ``alignment/<kernel>[<layer>]/over_chance``.

    How far the kernel turned and how much it grew are ``kernel/distance`` and ``kernel/growth`` of ``Motion``.

    Attributes:
        points: test points used, the first ones; all where there are fewer.
    """

    name: str = "alignment"
    version: int = 1
    points: int = 128

    def __post_init__(self) -> None:
        check_count(f"compare.{self.name}.points", self.points, LEAST)

    def __call__(self, trained: Trained) -> list[Score]:
        columns: dict[str, list[float]] = {}
        for i, moments in enumerate(_moments(trained, self.points)):
            row = _summary("infinite_ntk", *self._infinite(trained, i))
            for kernel, snapshot in (("initial", 0), ("after", -1)):
                shares, y = moments[snapshot], self._labels(trained, i)
                row |= _summary(kernel, _total(shares), y)
                row |= _train(kernel, train_kernel(trained, i, snapshot), train_labels(trained, i))
                row |= {
                    f"{kernel}[{layer}]/over_chance": _over_chance(share, y)
                    for layer, share in shares.items()
                    if len(shares) > 1
                }
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        data = [member.data for member in trained.members]
        return [summarise(f"alignment/{name}", values, data) for name, values in columns.items()]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        """``snapshot_alignment_held_out`` and ``snapshot_alignment_over_chance`` [m, S]: while it trains."""
        held_out, over = [], []
        for i, moments in enumerate(_moments(trained, self.points)):
            y = self._labels(trained, i)
            kernels = [_total(shares) for shares in moments]
            held_out.append([alignment(kernel, y) for kernel in kernels])
            over.append([_over_chance(kernel, y) for kernel in kernels])
        return {"snapshot_alignment_held_out": np.array(held_out), "snapshot_alignment_over_chance": np.array(over)}

    def _labels(self, trained: Trained, member: int) -> Tensor:
        return clean_labels(trained, member)[: self.points]

    def _infinite(self, trained: Trained, member: int) -> tuple[Tensor | None, Tensor]:
        try:
            kernel = _infinite_kernels(trained, self.points)[trained.members[member].data]
        except UnavailableError:
            kernel = None
        return kernel, self._labels(trained, member)


@kept(1)
def _infinite_kernels(trained: Trained, points: int) -> dict[int, Tensor]:
    """Data draw -> the infinite-width NTK at the held-out points, [p, p].

    Raises:
        UnavailableError: the model has none.
    """
    limit = limit_of(trained)
    draws = sorted({member.data for member in trained.members})
    return {data: limit(trained.tasks[data].x_test[:points].to(trained.f_T)).ntk for data in draws}


@kept(1)
def _moments(trained: Trained, points: int) -> list[list[Shares]]:
    """The layers' shares of every member at every snapshot.

    Raises:
        UnavailableError: without test labels, or with too few of them.
    """
    if len(clean_labels(trained, 0)[:points]) < LEAST:
        raise UnavailableError(f"Alignment needs at least {LEAST} test points.")
    found: list[list[Shares]] = [[] for _ in trained.members]
    for batch in trained.together(points**2):
        x = trained.task(batch[0]).x_test[:points].to(trained.f_T.device)
        for snapshot in range(trained.snapshots):
            shares = trained.kernels(batch, snapshot, x, outputs="trace", by_layer=True)
            for place, member in enumerate(batch):
                found[member].append({layer: share[place] for layer, share in shares.items()})
    return found


def _total(shares: Shares) -> Tensor:
    return torch.stack(list(shares.values())).sum(0)


def _summary(name: str, kernel: Tensor | None, y: Tensor) -> dict[str, float]:
    """Everything about one kernel at the held-out points; nothing of a kernel that there is not."""
    if kernel is None:
        return {}
    value, expected, power = alignment(kernel, y), chance(kernel, y), cumulative_power(kernel, y)
    return {
        name: value,
        f"{name}/over_chance": value / expected.mean,
        f"{name}/z": expected.z(value),
        f"{name}/power_tenth": power_at(power, TENTH),
        f"{name}/power_area": area(power),
    }


def _train(name: str, kernel: Tensor, y: Tensor) -> dict[str, float]:
    value = {f"{name}/train": alignment(kernel, y)}
    return value | ({f"{name}/train_over_chance": _over_chance(kernel, y)} if len(y) >= LEAST else {})


def _over_chance(kernel: Tensor, y: Tensor) -> float:
    return alignment(kernel, y) / chance(kernel, y).mean
