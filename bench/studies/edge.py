"""Full-batch descent with a constant step, around and beyond the edge of stability 2 / lambda_max."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.networks import change
from bench.record import Record
from bench.studies.named import make, shapes_of
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, seed_of
from tasks.sphere import single_index


@dataclass(frozen=True)
class Edge:
    """Settings: one network a seed and c, the step times lambda_max(K_0 / N), in NTK parameterization."""

    steps_c: tuple[float, ...] = (1.5, 1.9, 2.1, 2.5)
    width: int = 2048
    steps: int = 6
    n_train: int = 64
    d: int = 8
    seeds: tuple[int, ...] = tuple(range(5))


def edge(settings: Edge) -> Record:
    """``ratio`` [seeds, c]: what a step multiplies the residual's top mode by; ``lambda`` [seeds, c]: lambda_max at
    the end over that at the start; ``diverged`` [seeds, c]: 0 or 1.
    """
    tasks = [single_index(d=settings.d, n_train=settings.n_train, n_test=1, seed=seed_of("data", seed))
             for seed in settings.seeds]  # fmt: skip
    net = make("model", "mlp", shapes_of(tasks[0]), width=settings.width)
    trainer = Trainer(constant=True, tolerance=0.0, max_steps=settings.steps, schedule="dense", dtype="float64",
                      sharpness=True)  # fmt: skip
    members = [Member(i, seed, step=c) for i, seed in enumerate(settings.seeds) for c in settings.steps_c]
    trained = trainer.fit(net, tasks, members)
    shape = (len(settings.seeds), len(settings.steps_c))
    ratios, lambdas = [], []
    for i, history in enumerate(trained.history):
        x, y = trained.task(i).x_train, trained.task(i).y_train.double()
        top = torch.linalg.eigh(trained.ntk[i, 0][: len(x), :, 0, 0]).eigenvectors[:, -1]
        f = change(trained.net, {name: value[i] for name, value in trained.params.items()}, x)
        modes = ((f - y)[..., 0] @ top).abs()
        steps = len(history.steps)
        ratios.append(float((modes[steps] / modes[0]) ** (1 / max(steps, 1))))
        known = history.lambda_max[torch.isfinite(history.lambda_max)]
        lambdas.append(float(known[-1] / known[0]))
    diverged = np.array([status == "diverged" for status in trained.status], dtype=np.float64)
    return result(arrays={
        "c": np.array(settings.steps_c), "ratio": np.array(ratios).reshape(shape),
        "lambda": np.array(lambdas).reshape(shape), "diverged": diverged.reshape(shape),
    })  # fmt: skip
