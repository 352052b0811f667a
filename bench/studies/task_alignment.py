"""Alignment of a kernel with tasks: all that ship, and all pairs of classes of an image set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch

from bench.diagnose import Diagnosis, diagnose
from bench.record import Record, summarise
from bench.studies.named import named_model, named_task
from bench.studies.study import ROOT, result
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


@dataclass(frozen=True)
class ShippedTasks:
    """Settings: each seed is a data draw of every task in ``conf/task`` whose data are there, at its own size.

    ``model``: a file of ``conf/model``, of whose infinite-width NTK the alignment is.
    """

    model: str = "mlp"
    seeds: tuple[int, ...] = tuple(range(4))


def shipped_tasks(settings: ShippedTasks) -> Record:
    """Chance-normalised alignment, and what goes with it, of a kernel with every task: ``diagnose`` on all its points.

    Scores ``<task>/<what>``: ``over_chance`` (centred alignment over its mean for permuted labels), ``alignment``,
    ``z``, ``power_tenth``, ``power_area``, ``predicted`` and ``measured`` (test errors of regression). Arrays
    ``<what>`` [seeds, tasks]. ``card["missing"]``: tasks whose data are not there.
    """
    found: dict[str, list[Diagnosis]] = {}
    missing = []
    for name in sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")):
        try:
            found[name] = [_shipped(name, settings.model, seed) for seed in settings.seeds]
        except FileNotFoundError:
            missing.append(name)
    columns: dict[str, Callable[[Diagnosis], float]] = {
        "over_chance": lambda d: d.alignment / d.chance,
        **{what: attrgetter(what) for what in ("alignment", "z", "power_tenth", "power_area", "predicted", "measured")},
    }
    arrays = {what: np.array([[of(d) for d in row] for row in found.values()]).T for what, of in columns.items()}
    scores = [
        summarise(f"{task}/{what}", list(arrays[what][:, i]), settings.seeds)
        for i, task in enumerate(found)
        for what in columns
    ]
    return result(tuple(scores), arrays, {"title": f"Alignment of the {settings.model}'s infinite-width NTK with tasks",
                                          "tasks": list(found), "missing": missing})  # fmt: skip


def _shipped(name: str, model: str, seed: int) -> Diagnosis:
    task = named_task(name, None, None, seed_of("data", seed))
    limit = infinite_width(named_model(model, task, 1))
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    return diagnose(limit, x, y, task.n_train)
