"""The conservation law: over any complete basis of targets, learnabilities sum to n, until features are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record, summarise
from bench.studies.panel import Curve, Panel, gap, page
from bench.studies.populations import circle, corners, fit_networks, network, ntk, parities
from bench.studies.study import result
from bench.theory.eigenlearning import eigenlearning
from bench.theory.finite_population import finite_population
from bench.theory.sample import sample_spectrum
from bench.theory.trials import kernel_trials
from bench.train import Trainer
from bench.trained import seed_of

KERNELS = ("infinite-width NTK", "Laplace", "random matrix")


@dataclass(frozen=True)
class Conservation:
    """Settings: each seed is a training set of n points, and an initialisation that all targets share.

    Attributes:
        domain: "cube" (all 2^size parities as targets) or "circle" (all sinusoids on ``size`` points).
        scales: output scales alpha of the networks, gamma = 1 / alpha: large is lazy. None are trained for none.
        unshared: also train networks whose initialisations differ between targets, at the first scale.
        trials: training sets of the kernels, besides the networks'.
    """

    domain: Literal["cube", "circle"] = "cube"
    size: int = 6
    n: int = 16
    depth: int = 1
    activation: str = "relu"
    width: int = 64
    scales: tuple[float, ...] = (8.0, 1.0, 0.25, 0.1)
    unshared: bool = False
    ridges: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    trials: int = 200
    tolerance: float = 1e-6
    max_steps: int = 30_000
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def conservation(settings: Conservation) -> Record:
    """``kernel_total`` [seeds, kernels, 2]: sum of the learnabilities over the domain's own and over a random basis,
    of one training set, without ridge. ``ridge_total`` [seeds, ridges]: the NTK's, mean over sets, beside the theory
    ``ridge_plain`` and, without replacement, ``ridge_finite`` [1, ridges]. ``network_total`` [seeds, scales] and
    ``network_loss``, the largest relative train MSE of its networks; ``unshared_total`` [seeds].
    """
    x, basis, kernels = _domain(settings)
    spectrum = sample_spectrum(kernels[0])
    flat = torch.ones_like(spectrum.eigenvalues)
    ridges = torch.tensor(settings.ridges, dtype=torch.float64)
    plain = eigenlearning(spectrum.eigenvalues, flat, settings.n, ridges)
    finite = finite_population(spectrum.eigenvalues, flat, settings.n, ridges)
    rows = [_seed(settings, x, basis, kernels, seed) for seed in settings.seeds]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    arrays |= {
        "ridge_plain": plain.total_learnability[None].numpy(), "ridge_finite": finite.total_learnability[None].numpy(),
        "ridges": np.array(settings.ridges), "scales": np.array(settings.scales),
        "richness": 1 / (np.array(settings.scales) * settings.width**0.5),
        "n_line": np.full((1, len(settings.scales)), float(settings.n)),
    }  # fmt: skip
    scores = [gap("kernel regression to n", arrays["kernel_total"], np.array(float(settings.n)))]
    scores += [
        summarise(f"networks, richness {richness:.2g}: sum of learnabilities", list(totals), settings.seeds)
        for richness, totals in zip(arrays["richness"], arrays["network_total"].T, strict=True)
    ]
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def _domain(settings: Conservation) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Points, a complete orthonormal basis of functions on them, [M, M], and kernels."""
    if settings.domain == "cube":
        x, basis = corners(settings.size), parities(settings.size)
        kernel = ntk(settings.size, settings.depth, settings.activation)(x)
    else:
        levels = range(settings.size // 2 + 1)
        population = circle(settings.size, settings.depth, levels, settings.activation)
        x, kernel = population.x, population.kernel
        angles = torch.atan2(x[:, 1], x[:, 0])
        sines = [2**0.5 * (k * angles).sin() for k in levels if 0 < 2 * k < settings.size]
        basis = torch.cat([population.targets, torch.stack(sines, 1)], 1)
    count = len(x)
    wishart = torch.randn(count, 2 * count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, basis, [kernel, (-torch.cdist(x, x)).exp(), wishart @ wishart.T]


def _seed(settings: Conservation, x: Tensor, basis: Tensor, kernels: list[Tensor], seed: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed_of("sets", seed))
    count = len(x)
    mixed, _ = torch.linalg.qr(torch.randn(count, count, generator=rng, dtype=torch.float64))
    both = torch.cat([basis, mixed * count**0.5], 1)
    totals = []
    for kernel in kernels:
        one = kernel_trials(kernel, both, settings.n, trials=1, generator=rng)
        totals.append([float(one.learnability[0, :count].sum()), float(one.learnability[0, count:].sum())])
    budget = [
        float(kernel_trials(kernels[0], basis[:, :1], settings.n, trials=settings.trials, generator=rng, ridge=ridge)
              .total_learnability.mean())
        for ridge in settings.ridges
    ]  # fmt: skip
    found: dict[str, Any] = {"kernel_total": totals, "ridge_total": budget}
    drawn = torch.randperm(count, generator=rng)[None, : settings.n]
    found |= {"network_total": [], "network_loss": []}
    for scale in settings.scales:
        total, loss = _networks(settings, x, basis, drawn, seed, scale, shared=True)
        found["network_total"].append(total)
        found["network_loss"].append(loss)
    if settings.unshared:
        found["unshared_total"] = _networks(settings, x, basis, drawn, seed, settings.scales[0], shared=False)[0]
    return found


def _networks(
    settings: Conservation, x: Tensor, basis: Tensor, drawn: Tensor, seed: int, scale: float, shared: bool
) -> tuple[float, float]:
    """Sum of the learnabilities of networks on every basis function, and their largest relative train MSE."""
    net = network(x.shape[1], settings.width, settings.depth, settings.activation)
    trainer = Trainer(
        1 / (scale * settings.width**0.5), tolerance=settings.tolerance, max_steps=settings.max_steps, snapshots=2
    )
    outputs, losses = fit_networks(net, trainer, x, basis, drawn, first_init=seed, shared=shared)
    return float((outputs[0, 0] * basis.T).mean(1).sum()), float(losses.max())


def _page(settings: Conservation) -> dict[str, Any]:
    text = (
        f"n = {settings.n} points of the {settings.domain} ({settings.size}). Kernel regression without ridge: the "
        "learnabilities of any complete basis of targets sum to n exactly, for any kernel; a ridge takes its share. "
        "Trained networks, each basis function its own target, from one initialisation: lazy ones (small richness) "
        "share out n, too; feature learning breaks the budget."
    )
    ridge = (
        Curve("without replacement", "ridge_finite", "theory"), Curve("without replacement", "ridge_total", "kernel"),
        Curve("plain", "ridge_plain", "theory"),
    )  # fmt: skip
    panels = [Panel("Ridge budget", "ridges", "ridge", "sum of learnabilities", ridge)]
    if settings.scales:
        curves = (Curve("n", "n_line", "theory"), Curve("networks", "network_total", "network"))
        panels.append(Panel("Feature learning", "richness", "richness", "sum of learnabilities", curves, log_x=True))
    return page(f"Conservation law: {settings.domain} {settings.size}", text, tuple(panels))
