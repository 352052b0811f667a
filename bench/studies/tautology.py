"""What a predictor scores whose base is the trained network itself: the trap that the library refuses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.compare.metrics import network_outputs, r2, train_labels
from bench.compare.rivals import laplace
from bench.predict import KernelPredictor
from bench.record import Record
from bench.studies.scored_networks import ScoredNetworks, train
from bench.studies.study import result


@dataclass(frozen=True)
class Tautology:
    """Settings: one network a seed, staircase, 256 points, richness 3."""

    seeds: tuple[int, ...] = tuple(range(4))
    width: int = 256


def tautology(settings: Tautology) -> Record:
    """R2 to the network of an unrelated Laplace kernel, [seeds]: on base f_T (``trained``) and on base ``zero``."""
    trained = train(
        ScoredNetworks("staircase", settings.width, {"richness": 3.0}, (), settings.seeds, {"n_train": 256})
    )
    rows = []
    for i in range(len(settings.seeds)):
        task, network = trained.task(i), network_outputs(trained, i)
        n, kernel = task.n_train, laplace(torch.cat([task.x_train, task.x_test]).double(), task.n_train)
        y, predictor = train_labels(trained, i), KernelPredictor(kernel[: task.n_train])
        correction = predictor.fit(y - trained.f_T[i, :n]).predict(kernel[n:])
        rows.append([r2(network + correction, network), r2(predictor.fit(y).predict(kernel[n:]), network)])
    values = np.array(rows)
    return result(arrays={"trained": values[:, 0], "zero": values[:, 1]})
