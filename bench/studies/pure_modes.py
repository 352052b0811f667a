"""Learning curves of pure modes: eigenlearning, kernel regression and trained networks on the same training sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record, summarise
from bench.studies.panel import Curve, Kind, Panel, gap, page
from bench.studies.populations import Population, circle, cube, fit_networks, network, sphere
from bench.studies.study import result
from bench.theory.bounds import first_point_mse
from bench.theory.trials import kernel_trials
from bench.train import Trainer
from bench.trained import seed_of

DOMAINS = {"cube": (8, (0, 1, 3, 8)), "sphere": (8, (0, 1, 2, 3)), "circle": (256, (0, 2, 5, 10))}


@dataclass(frozen=True)
class PureModes:
    """Settings: each seed is ``trials`` training sets of each n; networks are trained on the first ``networks``.

    Attributes:
        domain: "cube" (``size`` bits), "sphere" (in ``size`` dimensions) or "circle" (of ``size`` points).
        size: None: 8, 8 and 256.
        levels: of the targets; none: some of easy and hard ones.
        points: of the sample of a sphere.
        radius: of the sphere, in the data and in the theory; None: the square root of its dimensions.
        networks: 0 for none.
    """

    domain: Literal["cube", "sphere", "circle"] = "cube"
    size: int | None = None
    depth: int = 4
    levels: tuple[int, ...] = ()
    n: tuple[int, ...] = (8, 16, 32, 64, 128)
    trials: int = 30
    points: int = 2048
    radius: float | None = None
    networks: int = 0
    width: int = 128
    tolerance: float = 1e-5
    max_steps: int = 20_000
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        if not 0 <= self.networks <= self.trials or self.trials < 1:
            raise ValueError(f"networks must be from 0 to trials = {self.trials}, not {self.networks}.")
        if not self.n or min(self.n) < 1:
            raise ValueError(f"n must be whole numbers of at least 1, not {self.n}.")
        if self.radius is not None and (self.domain != "sphere" or self.radius <= 0):
            raise ValueError(f"radius is that of a sphere, above 0, not {self.radius} of the {self.domain}.")
        size, levels = DOMAINS[self.domain]
        object.__setattr__(self, "size", self.size or size)
        object.__setattr__(self, "levels", self.levels or levels)


def pure_modes(settings: PureModes) -> Record:
    """Test MSE and learnability of each target, over the whole domain (of a sphere: over the points not drawn).

    ``theory_mse``, ``theory_learnability`` [1, levels, n]; ``kernel_...`` [seeds, levels, n], means over the trials;
    ``network_...`` and, on the very same training sets, ``kernel_same_...`` likewise (nan where one of the networks did
    not reach the tolerance). ``first_mse`` [1, levels]: the exact MSE of one training point; ``kernel_first``: measured
    on every one of up to 256 points. ``mean_square`` [seeds, levels]: of the targets of a sphere
    on its sample, before they are scaled to 1.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for seed in settings.seeds:
        population = _population(settings, seed)
        columns = [_measure(settings, population, n, seed) for n in settings.n]
        rows.setdefault("mean_square", []).append(population.mean_square.numpy())
        for name in columns[0]:
            rows.setdefault(name, []).append(np.stack([column[name] for column in columns], 1))
    arrays = {name: np.stack(values) for name, values in rows.items()}
    spectrum = population.spectrum
    n = torch.tensor(settings.n, dtype=torch.float64)
    predicted = spectrum.predict(population.target, n[:, None])
    arrays["theory_mse"] = predicted.test_mse.T[None].numpy()
    arrays["theory_learnability"] = predicted.learnability.T[None].numpy()
    first = first_point_mse(spectrum.eigenvalues, population.power, multiplicities=spectrum.multiplicities)
    arrays["first_mse"] = first[None].numpy()
    arrays["kernel_first"] = _first_points(population)
    arrays["n"] = np.array(settings.n)
    scores = [gap("kernel to theory, test MSE", arrays["kernel_mse"], arrays["theory_mse"])]
    for i, level in enumerate(settings.levels):
        if (highest := arrays["theory_mse"][:, i].max()) > 1:
            scores += [
                summarise(
                    f"level {level}, highest test MSE/kernel", list(arrays["kernel_mse"][:, i].max(1)), settings.seeds
                ),
                summarise(f"level {level}, highest test MSE/theory", [highest], [0]),
            ]
    if settings.networks:
        scores.append(gap("network to kernel, test MSE", arrays["network_mse"], arrays["kernel_same_mse"]))
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def _population(settings: PureModes, seed: int) -> Population:
    assert settings.size is not None
    if settings.domain == "cube":
        return cube(settings.size, settings.depth, settings.levels)
    if settings.domain == "circle":
        return circle(settings.size, settings.depth, settings.levels)
    return sphere(settings.size, settings.depth, settings.levels, settings.points, seed, radius=settings.radius)


def _measure(settings: PureModes, population: Population, n: int, seed: int) -> dict[str, np.ndarray]:
    """The errors of one n, each [levels]."""
    generator = torch.Generator().manual_seed(seed_of("sets", seed, n))
    drawn = kernel_trials(population.kernel, population.targets, n, trials=settings.trials, generator=generator)
    errors = drawn.population_mse if population.whole else drawn.test_mse
    learnt = _learnability(population, drawn.learnability, drawn.drawn)
    found = {"kernel_mse": errors.mean(0), "kernel_learnability": learnt.mean(0)}
    if count := settings.networks:
        net = network(population.x.shape[1], settings.width, settings.depth)
        trainer = Trainer(
            accelerated=True, step=1.0, tolerance=settings.tolerance, max_steps=settings.max_steps, snapshots=2
        )
        outputs, _ = fit_networks(net, trainer, population.x, population.targets, drawn.drawn[:count], first_init=seed)
        outputs = outputs[:, 0].transpose(1, 2)  # [sets, M, c]
        squared = (outputs - population.targets) ** 2
        if not population.whole:
            inside = torch.zeros(count, len(population.x), dtype=torch.bool).scatter_(1, drawn.drawn[:count], True)
            squared = squared.where(~inside[..., None], 0.0) * (len(population.x) / (len(population.x) - n))
        found["network_mse"] = squared.mean((0, 1))
        overlap = (outputs * population.targets).mean(1)
        found["network_learnability"] = _learnability(population, overlap, drawn.drawn[:count]).mean(0)
        found["kernel_same_mse"] = errors[:count].mean(0)
        found["kernel_same_learnability"] = learnt[:count].mean(0)
    return {name: value.numpy() for name, value in found.items()}


def _learnability(population: Population, overlap: Tensor, drawn: Tensor) -> Tensor:
    """<f, f_hat> [sets, levels] of that over all points: of a sample, that over the points not drawn."""
    if population.whole:
        return overlap
    count, n = len(population.x), drawn.shape[1]
    return (count * overlap - population.targets[drawn].square().sum(1)) / (count - n)


def _first_points(population: Population) -> np.ndarray:
    """Test MSE over the whole domain of one training point, its mean over points, [1, levels]."""
    some = torch.arange(0, len(population.x), max(1, len(population.x) // 256))
    scale = population.kernel[some] / population.kernel.diagonal()[some, None]  # [points, M]
    predictions = scale[:, :, None] * population.targets[some, None]
    return (predictions - population.targets).square().mean((0, 1))[None].numpy()


def _page(settings: PureModes) -> dict[str, Any]:
    measured: list[tuple[Kind, str]] = [("kernel", "kernel_")]
    if settings.networks:
        measured.append(("network", "network_"))

    def panel(title: str, quantity: str, label: str) -> Panel:
        curves = []
        for i, level in enumerate(settings.levels):
            curves.append(Curve(f"level {level}", f"theory_{quantity}", "theory", (i,)))
            curves += [Curve(f"level {level}", f"{kind}{quantity}", name, (i,)) for name, kind in measured]
        return Panel(title, "n", "training points n", label, tuple(curves), log_x=True)

    title = f"Learning curves of pure modes: {settings.domain} {settings.size}, depth {settings.depth}"
    text = (
        "Each colour is one eigenfunction of the kernel as the target, by its level. Test MSE 1 is that of predicting "
        "nothing: eigenfunctions whose eigenvalue is below sum(lambda^2) / (2 sum(lambda)) rise above it before they "
        "fall."
    )
    if settings.domain == "circle":
        text += " On the circle, a domain of one dimension, the theory is known to fail."
    return page(title, text, (panel("Test error", "mse", "test MSE"), panel("Learnability", "learnability", "L")))
