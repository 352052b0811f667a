"""Whole training curves: networks, the exact flow of a fixed kernel, and early stopping read as a ridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.networks import change
from bench.predict import KernelPredictor
from bench.record import Record
from bench.studies.named import named_task
from bench.studies.panel import Curve, Panel, page, relative_gap
from bench.studies.populations import network, ntk
from bench.studies.study import result
from bench.theory.early_stopping import effective_ridge
from bench.theory.finite_population import finite_population
from bench.theory.sample import sample_spectrum
from bench.train import Trainer
from bench.trained import Member, seed_of
from tasks.task import Task


@dataclass(frozen=True)
class KernelFlow:
    """Settings: each seed is a data draw and an initialisation.

    Attributes:
        task: a name of ``conf/task`` with one output.
        step: of gradient descent, in units of 1 / lambda_max; small, so that it is a flow.
    """

    task: str = "digits"
    n: int = 128
    n_test: int = 512
    width: int = 1024
    depth: int = 1
    step: float = 0.2
    tolerance: float = 1e-2
    snapshots: int = 12
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def kernel_flow(settings: KernelFlow) -> Record:
    """Relative test error ``|f - y|^2 / |y|^2`` at each snapshot, [seeds, snapshots]: ``network``; ``initial`` and
    ``infinite``, the flow exp(-K t / N) of its own K_0 and of the infinite-width NTK; ``twice``, that of K_0 at 2 t;
    ``ridge`` (delta = N / t) and ``ridge_half`` (delta = N / (2 t)), the theory's prediction. ``time`` [snapshots] is
    the mean over seeds, 0 left out; ``times`` [seeds, snapshots].
    """
    rows = [_seed(settings, seed) for seed in settings.seeds]
    least = min(len(row["times"]) for row in rows)
    arrays = {name: np.array([row[name][-least:] for row in rows]) for name in rows[0]}
    arrays["time"] = arrays["times"].mean(0)
    named = {"flow of K_0": "initial", "flow of K_0 at twice the time": "twice", "flow at infinite width": "infinite",
             "ridge N / t": "ridge"}  # fmt: skip
    scores = [relative_gap(f"network to {label}", arrays["network"], arrays[name]) for label, name in named.items()]
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def _seed(settings: KernelFlow, seed: int) -> dict[str, np.ndarray]:
    task = named_task(settings.task, settings.n, settings.n_test, seed_of("data", seed))
    x = torch.cat([task.x_train, task.x_test]).double().flatten(1)
    task = Task(task.name, x[: settings.n], task.y_train.double(), x[settings.n :], task.y_test.double())
    net = network(x.shape[1], settings.width, settings.depth)
    trainer = Trainer(step=settings.step, tolerance=settings.tolerance, snapshots=settings.snapshots)
    trained = trainer.fit(net, [task], [Member(0, seed)])
    params = {name: value[0] for name, value in trained.params.items()}
    outputs = change(trained.net, params, task.x_test)
    times, kept = np.unique(trained.history[0].snapshot_times.numpy(), return_index=True)
    times, kept = times[1:], kept[1:]
    initial = trained.ntk[0, 0][:, :, 0, 0].cpu()
    infinite = ntk(x.shape[1], settings.depth)(x, x[: settings.n])
    y, clean = task.y_train.double(), task.y_test.double()

    def error(prediction: Tensor) -> float:
        return float((prediction.cpu() - clean).square().sum() / clean.square().sum())

    def flow(kernel: Tensor, time: float) -> float:
        predictor = KernelPredictor(kernel[: settings.n], time=time).fit(y)
        return error(predictor.predict(kernel[settings.n :]))

    whole = ntk(x.shape[1], settings.depth)(x)
    spectrum = sample_spectrum(whole)
    labels = torch.cat([y, clean])[:, 0]
    power, scale = spectrum.target(labels).power, float(clean.square().mean())
    ridge = effective_ridge(settings.n, times)
    theory = [finite_population(spectrum.eigenvalues, power, settings.n, ridge / k).test_mse / scale for k in (1, 2)]
    return {
        "times": times,
        "network": np.array([error(outputs[i]) for i in kept]),
        "initial": np.array([flow(initial, t) for t in times]),
        "infinite": np.array([flow(infinite, t) for t in times]),
        "twice": np.array([flow(initial, 2 * t) for t in times]),
        "ridge": theory[0].numpy(),
        "ridge_half": theory[1].numpy(),
    }


def _page(settings: KernelFlow) -> dict[str, Any]:
    curves = (
        Curve("network", "network", "network"), Curve("flow of K_0", "initial", "kernel"),
        Curve("flow of the infinite-width NTK", "infinite", "kernel"), Curve("theory, ridge N / t", "ridge", "theory"),
        Curve("theory, ridge N / 2t", "ridge_half", "theory"),
    )  # fmt: skip
    text = (
        f"Lazy networks of width {settings.width} on {settings.n} points of {settings.task} while they train: the "
        "exact flow of a fixed kernel follows them at every moment. Early stopping as a ridge is a measurement, good "
        "to some 10 %: in the suite's loss it should be N / t, and on digits N / 2t fits better."
    )
    panel = Panel("Test error while training", "time", "time t", "relative test error", curves, True, True)
    return page(f"Training curves by kernel flow: {settings.task}", text, (panel,))
