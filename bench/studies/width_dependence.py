"""How wide a network must be: its distance to the infinite-width NTK's regression, and to the theory of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import store
from bench.record import Record, summarise
from bench.studies.fits import slopes
from bench.studies.panel import Curve, Panel, page
from bench.studies.populations import cube, fit_networks, network
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import seed_of


@dataclass(frozen=True)
class WidthDependence:
    """Settings: each seed is a training set of each n on the cube of d bits, with ``inits`` networks a width.

    Attributes:
        levels: of the targets, parities of that many bits.
    """

    d: int = 6
    depth: int = 1
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    levels: tuple[int, ...] = (1, 2, 3)
    n: tuple[int, ...] = (16,)
    inits: int = 4
    tolerance: float = 1e-6
    max_steps: int = 20_000
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def width_dependence(settings: WidthDependence) -> Record:
    """``distance`` [seeds, n, widths]: mean square of f_net - f_kernel over domain, targets and inits.

    ``network_mse``, ``network_learnability`` [seeds, n, levels, widths]; the kernel's on the same sets and the
    theory's, [seeds or 1, n, levels, widths], are the same for all widths. Means are over the networks that
    reached the tolerance, and nan where none did: in one of 480 of width 20 all units of a layer are off at a training
    point, which is then never fitted.
    """
    population = cube(settings.d, settings.depth, settings.levels)
    basis_size = len(population.x)
    trainer = Trainer(
        accelerated=True, step=1.0, tolerance=settings.tolerance, max_steps=settings.max_steps, snapshots=2
    )
    names = ("distance", "network_mse", "network_learnability", "kernel_mse", "kernel_learnability")
    found: dict[str, list[list[Any]]] = {name: [[] for _ in settings.seeds] for name in names}
    unfinished = 0
    for i, seed in enumerate(settings.seeds):
        for n in settings.n:
            rng = torch.Generator().manual_seed(seed_of("sets", seed, n))
            rows = torch.randperm(basis_size, generator=rng)[None, :n]
            weights = torch.linalg.solve(population.kernel[rows[0]][:, rows[0]], population.targets[rows[0]])
            kernel = population.kernel[:, rows[0]] @ weights  # [M, c]
            columns = []
            for width in settings.widths:
                net = network(settings.d, width, settings.depth)
                outputs, _ = fit_networks(
                    net, trainer, population.x, population.targets, rows, first_init=seed, inits=settings.inits
                )
                columns.append(outputs[0].transpose(1, 2))  # [inits, M, c]
                unfinished += int(outputs.isnan().any(-1).sum())
            off = torch.stack([(f - kernel).square().nanmean() for f in columns])
            mse = torch.stack([(f - population.targets).square().nanmean((0, 1)) for f in columns], 1)
            learnt = torch.stack([(f * population.targets).nanmean((0, 1)) for f in columns], 1)
            spread = torch.ones(len(settings.widths), dtype=torch.float64)
            values = (off, mse, learnt, (kernel - population.targets).square().mean(0)[:, None] * spread,
                      (kernel * population.targets).mean(0)[:, None] * spread)  # fmt: skip
            for name, value in zip(names, values, strict=True):
                found[name][i].append(value.numpy())
    arrays = {name: np.array(value) for name, value in found.items()}
    points = torch.tensor(settings.n, dtype=torch.float64)
    predicted = population.spectrum.predict(population.target, points[:, None])
    ones = np.ones(len(settings.widths))
    arrays["theory_mse"] = predicted.test_mse.numpy()[None, :, :, None] * ones
    arrays["theory_learnability"] = predicted.learnability.numpy()[None, :, :, None] * ones
    arrays["widths"], arrays["n"] = np.array(settings.widths), np.array(settings.n)
    scores = []
    for i, n in enumerate(settings.n):
        reached = np.isfinite(arrays["distance"][:, i]).all(0)
        if reached.sum() > 1:
            found_slopes = slopes(arrays["widths"][reached], arrays["distance"][:, i, reached])
            name = f"n = {n}/exponent of the squared distance in the width"
            scores.append(summarise(name, list(found_slopes), settings.seeds))
    card = {**store.plain(settings), **_page(settings)}
    networks = len(settings.seeds) * len(settings.n) * len(settings.widths) * settings.inits * len(settings.levels)
    return result(tuple(scores), arrays, card, unfinished=unfinished, networks=networks)


def _page(settings: WidthDependence) -> dict[str, Any]:
    last = len(settings.n) - 1

    def modes(quantity: str) -> tuple[Curve, ...]:
        return tuple(
            Curve(f"level {level}", f"{kind}_{quantity}", kind, (last, i))
            for i, level in enumerate(settings.levels)
            for kind in ("theory", "kernel", "network")
        )

    distances = tuple(Curve(f"n = {n}", "distance", "network", (i,)) for i, n in enumerate(settings.n))
    largest = settings.n[-1]
    panels = (
        Panel("Distance to kernel regression", "widths", "width", "E |f_net - f_NTK|²", distances, True, True),
        Panel(f"Test error, n = {largest}", "widths", "width", "test MSE", modes("mse"), True),
        Panel(f"Learnability, n = {largest}", "widths", "width", "L", modes("learnability"), True),
    )
    text = (
        f"Networks of depth {settings.depth} on the {settings.d}-cube, lazy (NTK parameterization), against the "
        "regression with their infinite-width NTK on the same training set, and its theory. The squared distance falls "
        "as one over the width; the errors of hard modes follow only then."
    )
    return page(f"Width dependence: {settings.d}-cube, depth {settings.depth}", text, panels)
