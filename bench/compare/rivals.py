"""Predictors that are no theory of the network: a match that they score is no match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.kept import kept
from bench.compare.metrics import (
    known_answer,
    loss_name,
    match_scores,
    network_outputs,
    r2,
    skill_of,
    train_labels,
)
from bench.compare.predictions import Metrics, agnostic_ceilings, check_base, known, regress
from bench.predict import KernelPredictor
from bench.record import Score, nested_mean
from bench.trained import Trained
from tasks.task import Task

ITERATIONS = 3


@dataclass(frozen=True)
class Rivals:
    """A Laplace kernel, the same with a learnt metric (AGOP-Laplace), and the clean labels themselves."""

    name: str = "rivals"
    version: int = 2
    base: str = "init"

    def __post_init__(self) -> None:
        check_base("rivals", self.base)

    def __call__(self, trained: Trained) -> list[Score]:
        ceilings = agnostic_ceilings(trained, self.base, 0.0)
        return [
            score
            for name, predictions in rival_predictions(trained).items()
            for score in match_scores(name, trained, predictions, ceilings)
        ]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        return {}


@kept(1)
def rival_predictions(trained: Trained) -> dict[str, tuple[Tensor, ...]]:
    """Predictor -> [n_test, c] a member; the members of a data draw share theirs."""
    kernels: dict[tuple[int, int | None], dict[str, Tensor]] = {}
    found: dict[str, list[Tensor]] = {}
    shared: dict[tuple[object, ...], Tensor] = {}
    for i, member in enumerate(trained.members):
        draw = (member.data, member.target)
        if draw not in kernels:
            points, y = _points(trained.task(i), trained.f_T), train_labels(trained, i)
            kernels[draw] = {"laplace": laplace(points, len(y)), "agop_laplace": agop_laplace(points, y)}
        for name, kernel in kernels[draw].items():
            # By cross-entropy each is trained to its network's own loss; otherwise one serves all members of a draw.
            key = (name, draw if loss_name(trained) == "mse" else i)
            if key not in shared:
                shared[key] = regress(trained, i, kernel, "y", "zero", 0.0)
            found.setdefault(name, []).append(shared[key])
        if trained.labelled:
            found.setdefault("labels", []).append(known_answer(trained, i))
    return {name: tuple(predictions) for name, predictions in found.items()}


@kept(1)
def floors(trained: Trained) -> Metrics:
    """The best of the rivals, by metric: the mean over members of the best one."""
    data = [member.data for member in trained.members]
    best: Metrics = {}
    for metric in ("r2", "skill"):
        means = []
        for predictions in rival_predictions(trained).values():
            values = []
            for i, prediction in enumerate(predictions):
                values.append(
                    r2(prediction, network_outputs(trained, i)) if metric == "r2" else skill_of(trained, i, prediction)
                )
            means.append(nested_mean(values, data)[0])
        best[metric] = known(max(means))
    return best


def laplace(points: Tensor, n: int) -> Tensor:
    """``exp(-|x - x'| / bandwidth)``, the bandwidth being the mean distance of two training points.

    Args:
        points: [n_train + n_test, d], the n train rows first.

    Returns:
        [n_train + n_test, n_train].
    """
    return torch.exp(-_distances(points, points[:n]) / bandwidth(points[:n]))


def agop_laplace(points: Tensor, y: Tensor) -> Tensor:
    """Laplace with a metric M learnt from its own regression's average gradient outer product, three times.

    The recursive feature machine (Radhakrishnan, Beaglehole, Pandit and Belkin 2024, "Mechanism for feature learning in
    neural networks and backpropagation-free machine learning models"); M has trace d, and starts from the identity.

    Args:
        points: as for ``laplace``.
        y: [n_train, c].

    Returns:
        [n_train + n_test, n_train].
    """
    n, d = len(y), points.shape[1]
    root = torch.eye(d).to(points)
    width = bandwidth(points[:n])
    for _ in range(ITERATIONS):
        seen = points[:n] @ root
        distance = _distances(seen, seen)
        kernel = torch.exp(-distance / width)
        weights = KernelPredictor(kernel).fit(y).weights
        # grad of sum_j a_j K(x, x_j) in the seen coordinates: -(x - x_j) K / (width |x - x_j|), then back through root.
        slope = torch.where(distance > 0, -kernel / (width * distance), 0.0)
        gradients = []
        for output in range(y.shape[1]):
            scaled = slope * weights[:, output]
            gradients.append((scaled.sum(1, keepdim=True) * seen - scaled @ seen) @ root.T)
        gradient = torch.cat(gradients)
        metric = gradient.T @ gradient
        trace = metric.trace()
        if not bool(trace > 0):
            break
        eigenvalues, vectors = torch.linalg.eigh(metric * (d / trace))
        root = vectors * eigenvalues.clamp_min(0).sqrt() @ vectors.T
    seen = points @ root
    return torch.exp(-_distances(seen, seen[:n]) / width)


def bandwidth(x: Tensor) -> Tensor:
    """The mean distance of two different points of x [n, d]; 1 for a single point."""
    n = len(x)
    mean = _distances(x, x).sum() / max(n * (n - 1), 1)
    return torch.where(mean > 0, mean, 1.0)


def _distances(one: Tensor, two: Tensor) -> Tensor:
    return torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist")


def _points(task: Task, like: Tensor) -> Tensor:
    return torch.cat([task.x_train.flatten(1), task.x_test.flatten(1)]).to(like)
