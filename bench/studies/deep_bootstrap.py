"""Deep bootstrap: before the time 1 / kappa_0(n) train and test error are those of infinitely many points.

Nakkiran, Neyshabur, Sedghi 2021; a ridge delta acts as the time n / delta (``bench.theory.early_stopping``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record
from bench.studies.image_pairs import TASKS
from bench.studies.panel import Curve, Panel, page, relative_gap
from bench.studies.populations import fit_networks, network, ntk
from bench.studies.study import result
from bench.theory.early_stopping import crossover_time
from bench.theory.eigenlearning import eigenlearning
from bench.theory.finite_population import finite_population
from bench.theory.sample import sample_spectrum
from bench.theory.trials import kernel_trials
from bench.train import Trainer
from bench.trained import seed_of

CLASSES = [0, 1, 2, 3, 4]


@dataclass(frozen=True)
class DeepBootstrap:
    """Settings: each seed is a draw of Gaussian data, a population of MNIST digits and training sets of both.

    Attributes:
        modes: of the power law lambda_i = v_i^2 = i^-2 of the Gaussian data.
        tau: effective times n / ridge, for Gaussian data.
        population: MNIST digits, 0 to 4 against the rest, pooled to 14 x 14; 0: none, and no networks.
        image_tau: effective times on MNIST.
        shares: times of the networks, in units of the crossover time of n; 0 networks for none.
        reference: their training points that stand for infinitely many.
    """

    modes: int = 1000
    n: tuple[int, ...] = (16, 64, 256)
    tau: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e5, 1e6)
    gaussian_trials: int = 10
    population: int = 1000
    image_n: tuple[int, ...] = (32, 128, 512)
    image_tau: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e6)
    trials: int = 10
    networks: int = 2
    network_n: tuple[int, ...] = (32, 128)
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    reference: int = 500
    width: int = 128
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def deep_bootstrap(settings: DeepBootstrap) -> Record:
    """``test``, ``train``, ``noise_test``, ``noise_train`` (labels of pure unit noise) [seeds, n, tau] and their
    ``..._theory`` [1, n, tau], ``ideal`` [1, tau] of infinitely many points; ``image_test`` and
    ``image_theory`` [seeds, n, tau], off the training set; ``ratio`` [seeds, n, shares]: test MSE of networks
    on n points over that of networks on ``reference`` points at the same time.
    """
    lam = torch.arange(1, settings.modes + 1, dtype=torch.float64) ** -2
    v = torch.arange(1, settings.modes + 1, dtype=torch.float64) ** -1
    n, tau = torch.tensor(settings.n, dtype=torch.float64)[:, None], torch.tensor(settings.tau, dtype=torch.float64)
    theory = eigenlearning(lam, v**2, n, n / tau)
    noise = eigenlearning(lam, torch.zeros_like(v), n, n / tau, 1.0)
    rows = [_seed(settings, lam, v, seed) for seed in settings.seeds]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    ideal = ((1 / (1 + lam * tau[:, None])) ** 2 * v**2).sum(1)
    arrays |= {
        "test_theory": theory.test_mse[None].numpy(), "train_theory": theory.train_mse[None].numpy(),
        "noise_test_theory": noise.test_mse[None].numpy(), "noise_train_theory": noise.train_mse[None].numpy(),
        "ideal": ideal[None].numpy(), "tau": np.array(settings.tau), "image_tau": np.array(settings.image_tau),
        "shares": np.array(settings.shares), "one": np.ones((1, len(settings.shares))),
    }  # fmt: skip
    scores = [relative_gap(f"power law to theory, {part} MSE", arrays[part], arrays[f"{part}_theory"])
              for part in ("test", "train")]  # fmt: skip
    if settings.population:
        scores.append(relative_gap("MNIST to theory, test MSE", arrays["image_test"], arrays["image_theory"]))
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def _seed(settings: DeepBootstrap, lam: Tensor, v: Tensor, seed: int) -> dict[str, np.ndarray]:
    pairs = [_gaussian(settings, lam, v, n, seed) for n in settings.n]
    names = ("test", "train", "noise_test", "noise_train")
    found = {name: np.array(pairs)[:, :, i] for i, name in enumerate(names)}
    return found | (_images(settings, seed) if settings.population else {})


def _gaussian(settings: DeepBootstrap, lam: Tensor, v: Tensor, n: int, seed: int) -> np.ndarray:
    """[tau, 4]: test and train MSE of ridge regression on Gaussian features, mean over draws; the same of unit noise.

    Errors over inputs are exact: only training sets are drawn, and every tau has the same ones.
    """
    rng = torch.Generator().manual_seed(seed_of("gaussian", seed, n))
    found = torch.zeros(settings.gaussian_trials, len(settings.tau), 4, dtype=torch.float64)
    for trial in range(settings.gaussian_trials):
        z = torch.randn(n, len(lam), generator=rng, dtype=torch.float64)
        noise = torch.randn(n, generator=rng, dtype=torch.float64)
        labels = torch.stack([z @ v, noise], 1)
        ridges = n / torch.tensor(settings.tau, dtype=torch.float64)[:, None, None]
        gram = (z * lam) @ z.T + ridges * torch.eye(n, dtype=torch.float64)  # [tau, n, n]
        dual = torch.cholesky_solve(labels.expand(len(ridges), -1, -1), torch.linalg.cholesky(gram))
        learned = lam[:, None] * (z.T @ dual)  # [tau, modes, 2]
        test, spread = (learned[..., 0] - v).square().sum(1), 1 + learned[..., 1].square().sum(1)
        train = (ridges * dual).square().mean(1)
        found[trial] = torch.stack([test, train[:, 0], spread, train[:, 1]], 1)
    return found.mean(0).numpy()


def _images(settings: DeepBootstrap, seed: int) -> dict[str, np.ndarray]:
    maker, size = TASKS["mnist"]
    task = maker(classes=None, n_train=settings.population, n_test=1, seed=seed_of("data", seed), size=size)
    x = task.x_train.double().flatten(1)
    y = torch.where(task.y_train.argmax(1) < len(CLASSES), 1.0, -1.0).double()[:, None]
    kernel = ntk(x.shape[1], 1)(x)
    spectrum = sample_spectrum(kernel)
    power = spectrum.target(y[:, 0]).power
    measured, expected = [], []
    for n in settings.image_n:
        ridges = [n / tau for tau in settings.image_tau]
        expected.append(finite_population(spectrum.eigenvalues, power, n, ridges).test_mse.tolist())
        row = []
        for ridge in ridges:
            rng = torch.Generator().manual_seed(seed_of("sets", seed, n))
            trials = kernel_trials(kernel, y, n, trials=settings.trials, generator=rng, ridge=ridge)
            row.append(float(trials.test_mse.mean()))
        measured.append(row)
    found = {"image_test": np.array(measured), "image_theory": np.array(expected)}
    if settings.networks:
        crossover = crossover_time(spectrum.eigenvalues, list(settings.network_n))
        ratios = [
            [_ratio(settings, x, y, n, share * float(t), seed) for share in settings.shares]
            for n, t in zip(settings.network_n, crossover, strict=True)
        ]
        found["ratio"] = np.array(ratios)
    return found


def _ratio(settings: DeepBootstrap, x: Tensor, y: Tensor, n: int, time: float, seed: int) -> float:
    """Test MSE at this time of networks on n points over that of networks on the reference, off both training sets."""
    rng = torch.Generator().manual_seed(seed_of("nested", seed))
    orders = torch.stack([torch.randperm(len(x), generator=rng) for _ in range(settings.networks)])
    trainer = Trainer(time=time, tolerance=0.0, step=0.5, snapshots=2)
    net = network(x.shape[1], settings.width, 1)
    errors = []
    for count in (n, settings.reference):
        outputs, _ = fit_networks(net, trainer, x, y, orders[:, :count], first_init=seed)
        outside = torch.ones(len(orders), len(x), dtype=torch.bool).scatter_(1, orders[:, : settings.reference], False)
        errors.append(float(((outputs[:, 0, 0] - y[:, 0]) ** 2)[outside].mean()))
    return errors[0] / errors[1]


def _page(settings: DeepBootstrap) -> dict[str, Any]:
    def curves(test: str, theory: str, sizes: tuple[int, ...]) -> list[Curve]:
        return [
            Curve(f"n = {n}", name, kind, (i,))  # type: ignore[arg-type]
            for i, n in enumerate(sizes)
            for name, kind in ((theory, "theory"), (test, "kernel"))
        ]

    ideal = Curve("infinitely many points", "ideal", "reference")
    label = "effective time n / ridge"
    panels = [
        Panel("Power law: test", "tau", label, "test MSE",
              (*curves("test", "test_theory", settings.n), ideal), True, True),
        Panel("Power law: train", "tau", label, "train MSE",
              (*curves("train", "train_theory", settings.n), ideal), True, True),
    ]  # fmt: skip
    if settings.population:
        images = tuple(curves("image_test", "image_theory", settings.image_n))
        panels.append(Panel("MNIST, 0-4 against 5-9", "image_tau", label, "test MSE", images, True, True))
    if settings.population and settings.networks:
        ratio = [Curve(f"n = {n}", "ratio", "network", (i,)) for i, n in enumerate(settings.network_n)]
        panels.append(Panel("Networks: collapse", "shares", "time x kappa_0(n)",
                            f"test MSE / that of n = {settings.reference}",
                            (*ratio, Curve("infinitely many points", "one", "reference")), True))  # fmt: skip
    text = (
        "Until the effective time reaches 1 / kappa_0(n), training sets of any size share one curve, that of "
        "infinitely many points: regularisation limits them. After it, the data do."
    )
    return page("Deep bootstrap", text, tuple(panels))
