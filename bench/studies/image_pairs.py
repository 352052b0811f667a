"""Pairs of image classes: the test error from the spectrum and the labels alone, with no measured input, against kernel
regression off its training set and, on the same sets, trained networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record
from bench.studies.panel import Curve, Panel, gap, page
from bench.studies.populations import fit_networks, network, ntk
from bench.studies.study import result
from bench.theory.estimators import gcv
from bench.theory.finite_population import finite_population
from bench.theory.sample import sample_spectrum
from bench.theory.trials import kernel_trials
from bench.train import Trainer
from bench.trained import seed_of
from tasks.images import cifar10, fashion_mnist, mnist

TASKS = {"mnist": (mnist, 14), "fashion_mnist": (fashion_mnist, 14), "cifar10": (cifar10, 16)}


@dataclass(frozen=True)
class ImagePairs:
    """Settings: each seed is a population of ``population`` images of a pair, and ``trials`` training sets of each n.

    Attributes:
        pairs: "<task>:<class>:<class>", of mnist, fashion_mnist and cifar10 (pooled to 14 x 14 and 16 x 16).
        ridges: the first is that of the networks' kernel, 0.
        networks: on the first training sets of each n; 0 for none.
    """

    pairs: tuple[str, ...] = ("mnist:3:8", "fashion_mnist:tshirt:shirt", "cifar10:bird:truck", "cifar10:deer:horse")
    population: int = 1000
    depth: int = 1
    n: tuple[int, ...] = (64, 256, 512)
    ridges: tuple[float, ...] = (0.0, 1.0, 30.0)
    trials: int = 10
    networks: int = 0
    width: int = 256
    tolerance: float = 1e-4
    max_steps: int = 20_000
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if len(pair.split(":")) != 3 or pair.split(":")[0] not in TASKS:
                raise ValueError(f"pairs must be <{'|'.join(TASKS)}>:<class>:<class>, not {pair!r}.")


def image_pairs(settings: ImagePairs) -> Record:
    """Test MSE off the training set, [seeds, pairs, ridges, n]: ``measured``, mean over trials; ``theory`` (without
    replacement), ``plain`` (eigenlearning's error over all points, converted by its train error, as its authors do);
    ``gcv``: from each training set alone, mean over trials. ``network`` and, on the same sets, ``same``
    [seeds, pairs, n].
    """
    rows = [[_pair(settings, pair, seed) for pair in settings.pairs] for seed in settings.seeds]
    arrays = {name: np.array([[one[name] for one in row] for row in rows]) for name in rows[0][0]}
    arrays["n"] = np.array(settings.n)
    scores = [gap("kernel to theory, test MSE", arrays["measured"], arrays["theory"])]
    if settings.networks:
        scores.append(gap("network to kernel, test MSE", arrays["network"], arrays["same"]))
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def population_of(pair: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [M, pixels], each of norm sqrt(pixels), and labels [M, 1], +1 and -1."""
    name, *classes = pair.split(":")
    maker, size = TASKS[name]
    chosen = [int(one) if one.isdigit() else one for one in classes]
    task = maker(classes=chosen, n_train=count, n_test=1, seed=seed_of("data", seed), size=size)
    return task.x_train.double().flatten(1), task.y_train.double()


def _pair(settings: ImagePairs, pair: str, seed: int) -> dict[str, Any]:
    x, y = population_of(pair, settings.population, seed)
    kernel = ntk(x.shape[1], settings.depth)(x)
    spectrum = sample_spectrum(kernel)
    target = spectrum.target(y[:, 0])
    n, count = torch.tensor(settings.n, dtype=torch.float64), settings.population
    ridges = torch.tensor(settings.ridges, dtype=torch.float64)[:, None]
    plain = spectrum.predict(target, n, ridges)
    found: dict[str, Any] = {
        "theory": finite_population(spectrum.eigenvalues, target.power, n, ridges).test_mse.numpy(),
        "plain": ((count * plain.test_mse - n * plain.train_mse) / (count - n)).numpy(),
        "measured": np.zeros((len(settings.ridges), len(settings.n))),
        "gcv": np.zeros((len(settings.ridges), len(settings.n))),
    }
    if settings.networks:
        found |= {"network": np.zeros(len(settings.n)), "same": np.zeros(len(settings.n))}
    for j, size in enumerate(settings.n):
        for i, ridge in enumerate(settings.ridges):
            rng = torch.Generator().manual_seed(seed_of("sets", seed, size))
            trials = kernel_trials(kernel, y, size, trials=settings.trials, generator=rng, ridge=ridge)
            found["measured"][i, j] = float(trials.test_mse.mean())
            if i == 0 and settings.networks:
                pair_of = _networks(settings, x, y, trials.drawn[: settings.networks], seed)
                found["network"][j], found["same"][j] = pair_of, float(trials.test_mse[: settings.networks].mean())
        estimates = [gcv(kernel[rows][:, rows], y[rows, 0], ridges[:, 0]).test_mse for rows in trials.drawn]
        found["gcv"][:, j] = torch.stack(estimates).mean(0).numpy()
    return found


def _networks(settings: ImagePairs, x: Tensor, y: Tensor, drawn: Tensor, seed: int) -> float:
    """Mean test MSE off the training sets."""
    trainer = Trainer(
        accelerated=True, step=1.0, tolerance=settings.tolerance, max_steps=settings.max_steps, snapshots=2
    )
    net = network(x.shape[1], settings.width, settings.depth)
    outputs, _ = fit_networks(net, trainer, x, y, drawn, first_init=seed)
    squared = (outputs[:, 0, 0] - y[:, 0]) ** 2  # [sets, M]
    outside = torch.ones(squared.shape, dtype=torch.bool).scatter_(1, drawn, False)
    return float(squared[outside].mean())


def _page(settings: ImagePairs) -> dict[str, Any]:
    panels = []
    for p, pair in enumerate(settings.pairs):
        curves: list[Curve] = []
        for i, ridge in enumerate(settings.ridges):
            curves += [Curve(f"ridge {ridge:g}", "theory", "theory", (p, i)),
                       Curve(f"ridge {ridge:g}", "measured", "kernel", (p, i))]  # fmt: skip
        if settings.networks:
            curves.append(Curve("networks", "network", "network", (p,)))
            curves.append(Curve("kernel, same sets", "same", "kernel", (p,)))
        panels.append(Panel(pair, "n", "training points n", "test MSE off the training set", tuple(curves), log_x=True))
    text = (
        f"The theory sees the kernel's spectrum on {settings.population} images and their labels, and no regression: "
        "training sets are drawn from them without replacement, and errors are over the images not drawn."
    )
    return page("Pairs of image classes", text, tuple(panels))
