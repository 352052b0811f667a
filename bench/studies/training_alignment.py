"""How the alignment of a network's kernel with its target moves while it trains, lazy, rich and silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import store
from bench.compare import Alignment, Motion
from bench.record import Record, summarise
from bench.studies.panel import Curve, Panel, page
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, Trained, seed_of
from models.mlp import mlp
from tasks.task import Task

POINTS = 25  # of the curves shown


@dataclass(frozen=True)
class TrainingAlignment:
    """Settings: a linear target of Gaussian inputs, or random labels; one network a seed, of one hidden layer.

    ``activation`` "relu" or another; ``richness`` and ``step`` as the trainer's; ``tolerance`` its relative train MSE.
    At richness 10 the trainer's own step, 1.5, is through in a handful of steps; .02 follows the flow, with snapshots
    at relative train losses, ``levels`` (none: at times, which miss the silent part of such a run).
    """

    activation: str = "relu"
    richness: float = 1.0
    labels: str = "linear"
    tolerance: float = 1e-2
    step: float = 1.5
    n: int = 100
    n_test: int = 400
    d: int = 20
    width: int = 256
    snapshots: int = 24
    levels: tuple[float, ...] = ()
    seeds: tuple[int, ...] = tuple(range(8))


def training_alignment(settings: TrainingAlignment) -> Record:
    """Of each seed's network, its kernel's alignment before and after, on training and on held-out points.

    Arrays [seeds]: ``train``, ``held_out`` (alignment after over before), ``train_over_chance`` and
    ``held_out_over_chance`` (each divided by its chance level first), ``change`` (of the held-out alignment over
    chance, after minus before), ``motion`` (``|K_T - K_0| / |K_0|``), ``distance`` (its rotation, 1 - cosine) and
    ``silent``: the relative train loss when half of the held-out alignment's growth is done; ``steps`` taken. Of the
    curve ``held_out_curve`` [seeds, points], of the held-out alignment: at ``progress`` [points], one over the relative
    train loss.
    """
    tasks = [_task(settings, seed) for seed in settings.seeds]
    w_std = 2**0.5 if settings.activation == "relu" else 1.0
    net = mlp(settings.d, settings.width, 1, 1, settings.activation, w_std=w_std, b_std=None)
    trainer = Trainer(
        richness=settings.richness, step=settings.step, tolerance=settings.tolerance, snapshots=settings.snapshots,
        schedule="loss" if settings.levels else "time", levels=settings.levels,
    )  # fmt: skip
    # Members are named by seeds, so that a network is the same whatever the other seeds are.
    trained = trainer.fit(net, tasks, [Member(i, seed) for i, seed in enumerate(settings.seeds)])
    if set(trained.status) != {"done"}:
        raise RuntimeError(f"{trained.status.count('done')} of {len(trained.status)} networks reached the tolerance.")
    measure = Alignment(points=settings.n_test)
    scores = {score.name: np.array(score.per_member) for score in [*measure(trained), *Motion()(trained)]}

    def after_over_before(name: str) -> np.ndarray:
        return scores[f"alignment/after{name}"] / scores[f"alignment/initial{name}"]

    held_out = measure.arrays(trained)["snapshot_alignment_held_out"]
    arrays: dict[str, np.ndarray] = {
        "train": after_over_before("/train"),
        "held_out": after_over_before(""),
        "train_over_chance": after_over_before("/train_over_chance"),
        "held_out_over_chance": after_over_before("/over_chance"),
        "change": scores["alignment/after/over_chance"] - scores["alignment/initial/over_chance"],
        "motion": scores["kernel/motion"],
        "distance": scores["kernel/distance"],
        "silent": np.array(_losses_half_way(trained, held_out)),
        "steps": np.array([float(history.snapshot_steps[-1]) for history in trained.history]),
    }
    found = tuple(summarise(name, list(values), settings.seeds) for name, values in arrays.items())
    progress = np.geomspace(1, 1 / settings.tolerance, POINTS)
    arrays["progress"] = progress
    arrays["held_out_curve"] = np.array(
        [
            np.interp(np.log(progress), -np.log(np.minimum.accumulate(history.snapshot_loss.numpy())), curve)
            for history, curve in zip(trained.history, held_out, strict=True)
        ]
    )
    return result(found, arrays, {**store.plain(settings), **_page(settings)})


def _page(settings: TrainingAlignment) -> dict[str, Any]:
    panels = (
        Panel("While it trains", "progress", "1 / relative train MSE", "centred alignment, held-out points",
              (Curve("alignment", "held_out_curve", "network"),), log_x=True),
    )  # fmt: skip
    text = (
        f"Networks of width {settings.width} ({settings.activation}, richness {settings.richness:g}) on {settings.n} "
        f"Gaussian points with {settings.labels} labels: the centred alignment of their kernel on points that they "
        f"were not trained on, while the train MSE falls from 1 (left) to {settings.tolerance:g}, in steps of "
        f"{settings.step:g} / lambda_max; interpolated between snapshots. The score silent is the loss at which half "
        "of the change of the alignment is done; change is that of the alignment over chance; steps are those taken; "
        "motion and distance (rotation) are of the kernel; the other scores are alignment after over before."
    )
    title = f"Alignment in training: {settings.activation}, richness {settings.richness:g}, {settings.labels} labels"
    return page(title, text, panels)


def _task(settings: TrainingAlignment, seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed_of("data", seed))
    x = torch.randn(settings.n + settings.n_test, settings.d, generator=generator)
    y = x @ torch.randn(settings.d, 1, generator=generator) / settings.d**0.5
    if settings.labels == "random":
        y = torch.randn(len(x), 1, generator=generator)
    n = settings.n
    return Task(settings.labels, x[:n], y[:n], x[n:], y[n:])


def _losses_half_way(trained: Trained, held_out: np.ndarray) -> Sequence[float]:
    losses = []
    for history, curve in zip(trained.history, held_out, strict=True):
        half = (curve[0] + curve[-1]) / 2
        passed = int(np.argmax(curve >= half) if curve[-1] >= curve[0] else np.argmax(curve <= half))
        losses.append(float(history.snapshot_loss[passed]))
    return losses
