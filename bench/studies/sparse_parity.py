"""Where kernel theory must fail: rich networks learn a sparse parity from far fewer points than their NTK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import store
from bench.record import Record, summarise
from bench.studies.panel import Curve, Panel, page, relative_gap
from bench.studies.populations import network, ntk
from bench.studies.study import result
from bench.theory.eigenlearning import eigenlearning
from bench.theory.hypercube import hypercube_spectrum
from bench.theory.spectrum import Kernel
from bench.train import Trainer
from bench.trained import Member, seed_of
from tasks.hypercube import parity
from tasks.task import Task


@dataclass(frozen=True)
class SparseParity:
    """Settings: each seed is a data draw of x_0 x_1 in d bits and an initialisation.

    Attributes:
        kernel_draws: data draws of the kernel, the first one that of the networks.
        scale: alpha of the rich networks, gamma = 1 / alpha; the lazy ones have 1.
    """

    d: int = 30
    n: tuple[int, ...] = (150, 300, 600)
    n_test: int = 1000
    kernel_draws: int = 16
    width: int = 128
    scale: float = 0.03
    tolerance: float = 1e-3
    max_steps: int = 20_000
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def sparse_parity(settings: SparseParity) -> Record:
    """Test MSE, [seeds, n]: ``kernel`` (infinite-width NTK), mean over draws, ``kernel_same``, on the networks' data,
    ``lazy``, ``rich``; ``theory`` [1, n].
    """
    kernel = ntk(settings.d, 1)
    spectrum = hypercube_spectrum(kernel, settings.d)
    power = torch.zeros(settings.d + 1, dtype=torch.float64)
    power[2] = 1
    theory = eigenlearning(
        spectrum.eigenvalues, power, list(settings.n), multiplicities=spectrum.multiplicities, tail=spectrum.tail
    )
    found: dict[str, list[list[float]]] = {"kernel": [], "kernel_same": [], "lazy": [], "rich": []}
    for seed in settings.seeds:
        rows: dict[str, list[float]] = {name: [] for name in found}
        for n in settings.n:
            tasks = [
                parity(d=settings.d, k=2, n_train=n, n_test=settings.n_test, seed=seed_of("draw", seed, i))
                for i in range(settings.kernel_draws)
            ]
            task, errors = tasks[0], [_regression(kernel, one) for one in tasks]
            rows["kernel"].append(float(np.mean(errors)))
            rows["kernel_same"].append(errors[0])
            for name, scale in (("lazy", 1.0), ("rich", settings.scale)):
                trainer = Trainer(1 / (scale * settings.width**0.5), tolerance=settings.tolerance,
                                  max_steps=settings.max_steps, snapshots=2)  # fmt: skip
                trained = trainer.fit(network(settings.d, settings.width, 1), [task], [Member(0, seed)])
                off = (trained.f_T[0, n:].cpu() - task.y_test).square().mean()
                rows[name].append(float(off) if trained.status[0] == "done" else float("nan"))
        for name, row in rows.items():
            found[name].append(row)
    arrays = {name: np.array(values) for name, values in found.items()}
    arrays |= {"theory": theory.test_mse[None].numpy(), "n": np.array(settings.n)}
    scores = [relative_gap("kernel to theory", arrays["kernel"], arrays["theory"]),
              relative_gap("lazy networks to kernel, same sets", arrays["lazy"], arrays["kernel_same"])]  # fmt: skip
    scores.append(summarise("rich networks over kernel, same sets",
                            list((arrays["rich"] / arrays["kernel_same"]).mean(1)), settings.seeds))  # fmt: skip
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def _regression(kernel: Kernel, task: Task) -> float:
    """Test MSE without ridge."""
    x, y = task.x_train.double(), task.y_train.double()
    prediction = kernel(task.x_test.double(), x) @ torch.linalg.solve(kernel(x), y)
    return float((prediction - task.y_test).square().mean())


def _page(settings: SparseParity) -> dict[str, Any]:
    curves = (Curve("NTK", "theory", "theory"), Curve("NTK", "kernel", "kernel"),
              Curve("lazy networks", "lazy", "network"),
              Curve("rich networks", "rich", "network"))  # fmt: skip
    text = (
        f"The parity of two of {settings.d} bits. Theory and regression agree on what the NTK can learn; networks that "
        "learn features need far fewer points, which no theory of a fixed kernel describes."
    )
    panel = Panel("Parity of two bits", "n", "training points n", "test MSE", curves, True, True)
    return page("Sparse parity: where the kernel theory ends", text, (panel,))
