"""Networks of one cell, trained and scored by the comparisons of the main job: the study behind most claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from bench.compare import (
    Comparison,
    Empirical,
    Features,
    Flows,
    InfiniteWidth,
    Linearised,
    Margin,
    Motion,
    Networks,
    Rivals,
    Trajectory,
)
from bench.record import Record, Score
from bench.studies.named import make, shapes_of
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, Trained, seed_of
from tasks.task import Task

COMPARISONS: Mapping[str, Comparison] = {
    comparison.name: comparison
    for comparison in (
        Empirical("after"), Empirical("initial"), InfiniteWidth(), Rivals(), Linearised(), Features(), Motion(),
        Networks(), Trajectory(), Margin(), Flows(),
    )
}  # fmt: skip

SMOOTH: Mapping[str, Any] = {"w_std": 1.0, "b_std": 0.3}
"""Scales for activations that are used as they are; ReLU has those of conf/model/mlp.yaml."""


def scales(activation: str) -> Mapping[str, Any]:
    """What differs from conf/model/mlp.yaml for this activation."""
    return {} if activation in ("relu", "leaky_relu") else SMOOTH


@dataclass(frozen=True)
class ScoredNetworks:
    """Settings of a cell of fully connected networks.

    Attributes:
        task: the name of a file in conf/task; ``task_settings`` differ from it.
        trainer: what differs from ``Trainer``'s defaults.
        compare: names of the comparisons to ask, see ``COMPARISONS``.
        inits: networks a seed; a seed is a data draw.
        codes: several classes are coded by random signs, as many outputs as classes, in place of one-hot: "balanced",
            half of them of either kind, so that they sum to zero as centred one-hot labels do, or "independent".
    """

    task: str
    width: int
    trainer: Mapping[str, Any]
    compare: tuple[str, ...]
    seeds: tuple[int, ...]
    task_settings: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 1
    activation: str = "relu"
    inits: int = 1
    codes: Literal["", "balanced", "independent"] = ""


def scored_networks(settings: ScoredNetworks) -> Record:
    """Scores and arrays of the comparisons; arrays also hold ``<predictor>/<metric>`` [seeds, inits] for every score.

    Raises:
        ValueError: a network that did not reach its tolerance; it carries no claim.
    """
    trained = train(settings)
    unfinished = [status for status in trained.status if status != "done"]
    if unfinished:
        raise ValueError(f"{len(unfinished)} of {len(trained.status)} networks are {', '.join(set(unfinished))}.")
    scores: list[Score] = []
    arrays: dict[str, np.ndarray] = {}
    shape = (len(settings.seeds), settings.inits)
    for name in settings.compare:
        found = COMPARISONS[name](trained)
        scores += found
        arrays |= COMPARISONS[name].arrays(trained)
        arrays |= {score.name: np.array(score.per_member).reshape(shape) for score in found}
    arrays["width"] = np.array(settings.width)
    arrays["steps"] = np.array([len(history.steps) for history in trained.history]).reshape(shape)
    return result(tuple(scores), arrays)


def train(settings: ScoredNetworks) -> Trained:
    """The networks of these settings, seed by seed."""
    tasks = [make("task", settings.task, **{**settings.task_settings, "seed": seed_of("data", seed)})
             for seed in settings.seeds]  # fmt: skip
    if settings.codes:
        tasks = [
            _coded(task, settings.codes, seed_of("codes", seed))
            for task, seed in zip(tasks, settings.seeds, strict=True)
        ]
    chosen = {"width": settings.width, "depth": settings.depth, "activation": settings.activation}
    net = make("model", "mlp", shapes_of(tasks[0]), **chosen, **scales(settings.activation))
    members = [
        Member(data, init=seed * settings.inits + init)
        for data, seed in enumerate(settings.seeds)
        for init in range(settings.inits)
    ]
    return Trainer(**settings.trainer).fit(net, tasks, members)


def _coded(task: Task, codes: str, seed: int) -> Task:
    """One-hot labels of c classes -> the classes' codes, c signs each."""
    c, generator = task.outputs, torch.Generator().manual_seed(seed)
    if codes == "balanced":
        signs = torch.arange(c) % 2
        rows = torch.stack([signs[torch.randperm(c, generator=generator)] for _ in range(c)])
    else:
        rows = torch.randint(2, (c, c), generator=generator)
    rows = rows * 2.0 - 1
    return replace(task, y_train=rows[task.y_train.argmax(1)], y_test=rows[task.y_test.argmax(1)])
