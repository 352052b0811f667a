"""Alignment of a kernel with tasks: all that ship, and all pairs of classes of an image set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from bench import store
from bench.diagnose import Diagnosis, diagnose
from bench.record import Record, summarise
from bench.studies.named import named_model, named_task
from bench.studies.panel import Curve, Panel, named_panel, page, places
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

    Arrays, all [seeds, 45]: ``power_tenth``, ``alignment``, ``leave_one_out``, ``predicted`` and ``test_error``; and
    ``<what>_mean`` [45] over the seeds. Scores: the rank correlation of each with ``test_error`` over the pairs.
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
    arrays = {name: np.array(values) for name, values in rows.items()}
    scores = tuple(
        summarise(f"{name}/Spearman with test error", rank_correlations(values, arrays["test_error"]), settings.seeds)
        for name, values in arrays.items()
        if name != "test_error"
    )
    arrays |= {f"{name}_mean": values.mean(0) for name, values in arrays.items()}
    arrays["as_predicted"] = arrays["predicted_mean"][None]
    return result(scores, arrays, {**store.plain(settings), **_pairs_page(settings)})


def rank_correlations(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Spearman's, a seed each, of [seeds, tasks] and [seeds, tasks]."""
    return [float(spearmanr(a, b).statistic) for a, b in zip(one, other, strict=True)]


def _pairs_page(settings: Pairs) -> dict[str, Any]:
    seen = (
        ("Power", "power_tenth", "C(.1), power in the leading tenth", False),
        ("Alignment", "alignment", "centred alignment", False),
        ("Leave-one-out", "leave_one_out", "leave-one-out error", True),
        ("Eigenlearning", "predicted", "predicted test error", True),
    )
    pair = (Curve("a pair of classes", "test_error", "kernel"),)
    equal = (Curve("as predicted", "as_predicted", "reference"),)
    panels = tuple(
        Panel(title, f"{name}_mean", label, "relative test error",
              pair + (equal if name == "predicted" else ()), log_x=error, log_y=error)
        for title, name, label, error in seen
    )  # fmt: skip
    text = (
        f"The 45 pairs of classes of Fashion-MNIST, {settings.n_train} training images of each pair: what the labels "
        f"and the kernel of the training points say (NTK of {settings.depth} ReLU layers; the predicted error sees the "
        "test points' kernel and labels, too), against the test error that regression makes, relative to the labels' "
        "mean square. A dot is a pair, the mean over the seeds."
    )
    return page("Which tasks are easy: 45 pairs of Fashion-MNIST", text, panels)


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
    tasks = tuple(found)
    card = {"model": settings.model, "tasks": tasks, "missing": missing, **_shipped_page(settings, tasks, missing)}
    return result(tuple(scores), arrays | places(tasks), card)


def _shipped_page(settings: ShippedTasks, tasks: tuple[str, ...], missing: list[str]) -> dict[str, Any]:
    def panel(title: str, label: str, curves: tuple[Curve, ...], log_y: bool = False) -> Panel:
        return named_panel(title, tasks, label, curves, log_y, "task")

    panels = (
        panel("Alignment over chance", "alignment / chance", (Curve("over chance", "over_chance", "kernel"),), True),
        panel("Standard deviations above chance", "permutation z", (Curve("z", "z", "kernel"),)),
        panel("Power in the leading modes", "share of the target's power",
              (Curve("C(.1), in the leading tenth", "power_tenth", "kernel"),
               Curve("area under C (chance .5)", "power_area", "kernel"))),
        panel("Relative test error of regression", "test error",
              (Curve("predicted", "predicted", "theory"), Curve("measured", "measured", "kernel"))),
    )  # fmt: skip
    text = (
        f"Every task that ships, at its own size, and the infinite-width NTK of the {settings.model}: what "
        "bench.diagnose says of its training and test points together. Alignment is centred; chance is its exact mean "
        "over permutations of the labels. The predicted test error is eigenlearning's."
    )
    return page(f"Alignment of the {settings.model}'s infinite-width NTK with every task", text + (
        f" No data at hand for: {', '.join(missing)}." if missing else ""), panels)  # fmt: skip


def _shipped(name: str, model: str, seed: int) -> Diagnosis:
    task = named_task(name, None, None, seed_of("data", seed))
    limit = infinite_width(named_model(model, task, 1))
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    return diagnose(limit, x, y, task.n_train)
