"""Random features: a theory of finite width with its double descent, on Gaussian data and on real ReLU features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record
from bench.studies.panel import Curve, Panel, page, relative_gap
from bench.studies.populations import corners, network
from bench.studies.study import result
from bench.theory.eigenlearning import eigenlearning
from bench.theory.hypercube import hypercube_spectrum, hypercube_target
from bench.theory.random_features import random_features
from bench.train import Trainer
from bench.trained import Member, seed_of
from models.limits import infinite_width
from tasks.task import Task


@dataclass(frozen=True)
class DoubleDescent:
    """Settings: each seed is ``trials`` draws of data and features for every number of features k.

    Attributes:
        modes: of the power law lambda_i = i^-1.3 of the Gaussian data, with v_i = i^-0.6.
        ridge, noise: of the Gaussian data; the cube has neither.
        d: bits of the cube of the ReLU features.
        networks: train this many networks' last layer, for widths of at least ``network_k``: 0 for none.
    """

    n: int = 48
    k: tuple[int, ...] = (8, 16, 32, 40, 48, 56, 64, 96, 192, 384)
    modes: int = 200
    ridge: float = 0.02
    noise: float = 0.1
    d: int = 8
    trials: int = 25
    networks: int = 0
    network_k: int = 96
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def double_descent(settings: DoubleDescent) -> Record:
    """Test MSE: ``gaussian`` [seeds, k], mean over trials, ``gaussian_theory`` and ``gaussian_kernel`` (of infinitely
    many features) [1, k]; ``relu`` [seeds, k], the *median* over trials, for at k = n the mean does not exist;
    ``relu_theory`` [1, k]; ``network`` [seeds, k]: networks of width k with their last layer trained, on training sets
    of their own (nan where there are none), and ``network_same`` [seeds, k]: regression on those networks' features.
    """
    lam = torch.arange(1, settings.modes + 1, dtype=torch.float64) ** -1.3
    v = torch.arange(1, settings.modes + 1, dtype=torch.float64) ** -0.6
    k = torch.tensor(settings.k, dtype=torch.float64)
    theory = random_features(lam, v**2, settings.n, k, settings.ridge, settings.noise)
    limit = infinite_width(network(settings.d, 8, 1).double())
    spectrum = hypercube_spectrum(lambda a, b=None: limit(a, b).nngp, settings.d)
    power = hypercube_target(_target, settings.d).power
    relu = random_features(spectrum.eigenvalues, power, settings.n, k, multiplicities=spectrum.multiplicities)
    kernel = eigenlearning(lam, v**2, settings.n, settings.ridge, settings.noise).test_mse
    found: dict[str, list[list[float]]] = {}
    for seed in settings.seeds:
        row: dict[str, list[float]] = {}
        for width in settings.k:
            rng = torch.Generator().manual_seed(seed_of("features", seed, width))
            row.setdefault("gaussian", []).append(_gaussian(settings, lam, v, width, rng))
            row.setdefault("relu", []).append(_relu(settings, width, rng))
            if settings.networks:
                pair = _networks(settings, width, seed) if width >= settings.network_k else (np.nan, np.nan)
                row.setdefault("network", []).append(pair[0])
                row.setdefault("network_same", []).append(pair[1])
        for name, values in row.items():
            found.setdefault(name, []).append(values)
    arrays = {name: np.array(values) for name, values in found.items()}
    arrays |= {
        "gaussian_theory": theory.test_mse[None].numpy(), "relu_theory": relu.test_mse[None].numpy(),
        "gaussian_kernel": np.full((1, len(k)), float(kernel)), "k": np.array(settings.k),
    }  # fmt: skip
    other = np.array(settings.k) != settings.n  # at k = n errors have no mean
    pairs = [("Gaussian", "gaussian", "gaussian_theory"), ("ReLU features", "relu", "relu_theory")]
    pairs += [("networks to their features", "network", "network_same")] * bool(settings.networks)
    scores = tuple(
        relative_gap(f"{label}, k other than n", arrays[measured][:, other], arrays[expected][:, other])
        for label, measured, expected in pairs
    )
    return result(scores, arrays, {**store.plain(settings), **_page(settings)})


def _target(x: Tensor) -> Tensor:
    return 0.8 * x[:, 0] + 0.6 * x[:, 1] * x[:, 2]


def _gaussian(settings: DoubleDescent, lam: Tensor, v: Tensor, k: int, rng: torch.Generator) -> float:
    """Ridge regression on k random combinations of Gaussian features; the error is exact, only the training drawn."""
    trials, n, modes = settings.trials, settings.n, settings.modes
    x = torch.randn(trials, n, modes, generator=rng, dtype=torch.float64)
    weights = torch.randn(trials, modes, k, generator=rng, dtype=torch.float64)
    y = x @ v + settings.noise**0.5 * torch.randn(trials, n, generator=rng, dtype=torch.float64)
    mixing = lam.sqrt()[:, None] * weights / k**0.5
    psi = x @ mixing
    gram = psi @ psi.mT + settings.ridge * torch.eye(n, dtype=torch.float64)
    dual = torch.linalg.solve(gram, y[..., None])
    learned = (mixing @ (psi.mT @ dual))[..., 0]
    return float(((learned - v) ** 2).sum(1).mean()) + settings.noise


def _relu(settings: DoubleDescent, k: int, rng: torch.Generator) -> float:
    """The median over trials of regression without ridge on the hidden layer of a random network."""
    x = corners(settings.d)
    y = _target(x)
    errors = []
    for _ in range(settings.trials):
        weights = torch.randn(k, settings.d, generator=rng, dtype=torch.float64)
        bias = torch.randn(k, generator=rng, dtype=torch.float64)
        psi = (2**0.5 / settings.d**0.5 * x @ weights.T + 0.1 * bias).relu()
        rows = torch.randperm(len(x), generator=rng)[: settings.n]
        solution = torch.linalg.lstsq(psi[rows], y[rows, None], driver="gelsd").solution
        errors.append((psi @ solution - y[:, None]).square().mean())
    return float(torch.stack(errors).median())


def _networks(settings: DoubleDescent, width: int, seed: int) -> tuple[float, float]:
    """Test MSE of networks with their last layer trained, and of regression on the features that they have."""
    x = corners(settings.d)
    rng = torch.Generator().manual_seed(seed_of("sets", seed))
    y = _target(x)[:, None]
    rows = [torch.randperm(len(x), generator=rng)[: settings.n] for _ in range(settings.networks)]
    tasks = [Task("cube", x[some], y[some], x, y) for some in rows]
    trainer = Trainer(readout_only=True, accelerated=True, step=1.0, tolerance=1e-6, snapshots=2)
    members = [Member(i, seed) for i in range(settings.networks)]
    trained = trainer.fit(network(settings.d, width, 1), tasks, members)
    errors, same = [], []
    for i, status in enumerate(trained.status):
        kernel = trained.ntk[i, 0][:, :, 0, 0]
        regression = kernel[settings.n :] @ torch.linalg.solve(kernel[: settings.n], y[rows[i]].to(kernel))
        same.append(float((regression - y.to(kernel)).square().mean()))
        off = (trained.f_T[i, settings.n :] - y.to(trained.f_T)).square().mean()
        errors.append(float(off) if status == "done" else float("nan"))
    return float(np.mean(errors)), float(np.mean(same))


def _page(settings: DoubleDescent) -> dict[str, Any]:
    relu = [Curve("ReLU features", "relu_theory", "theory"), Curve("ReLU features", "relu", "kernel")]
    if settings.networks:
        relu += [
            Curve("networks, last layer", "network", "network"),
            Curve("on their features", "network_same", "kernel"),
        ]
    panels = (
        Panel("Gaussian data and features", "k", "features k", "test MSE",
              (Curve("random features", "gaussian_theory", "theory"), Curve("random features", "gaussian", "kernel"),
               Curve("infinitely many", "gaussian_kernel", "theory")), True, True),
        Panel(f"ReLU features, {settings.d}-cube", "k", "width k", "test MSE", tuple(relu), True, True),
    )  # fmt: skip
    text = (
        f"n = {settings.n} training points and k random features: the error peaks at k = n and falls again. The theory "
        "is one of networks of finite width whose last layer is trained. On the cube the median over draws is shown: "
        "at k = n the mean does not exist, and the theory without ridge is infinite."
    )
    return page("Double descent of random features", text, panels)
