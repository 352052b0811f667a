"""The Hermite eigenstructure ansatz on CIFAR-10: spectrum and learning curve from the covariance and labels alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record
from bench.studies.panel import Curve, Panel, page, relative_gap
from bench.studies.populations import fit_networks, network, ntk
from bench.studies.study import result
from bench.theory.hermite import hermite_spectrum, whitening
from bench.theory.sample import sample_spectrum
from bench.theory.trials import kernel_trials
from bench.train import Trainer
from bench.trained import seed_of
from tasks.images import cifar10

ANIMALS = (2, 3, 4, 5, 6, 7)


@dataclass(frozen=True)
class HermiteImages:
    """Settings: each seed is a draw of ``images`` images, 8 x 8 pixels, vehicles against animals.

    Attributes:
        scale: s of the Gaussian kernel exp(-|x - x'|^2 / (2 s^2)), |x|^2 = 1 on average.
        sample: images whose Gram matrix is decomposed, to compare eigenvalues with.
        networks: lazy ReLU networks on the same sets, beside regression with their own NTK; 0 for none.
    """

    images: int = 6000
    scale: float = 4.0
    modes: int = 1500
    degrees: int = 8
    sample: int = 2000
    top: int = 200
    n: tuple[int, ...] = (100, 300, 1000)
    ridge: float = 1e-3
    trials: int = 5
    networks: int = 0
    width: int = 256
    network_n: tuple[int, ...] = (100, 300)
    seeds: tuple[int, ...] = (0, 1)


def hermite_images(settings: HermiteImages) -> Record:
    """``eigenvalues``, ``eigenvalues_theory`` [seeds, top], ``eigenvalues_wrong`` (of an isotropic covariance);
    test MSE ``measured`` and ``theory`` [seeds, n], ``biased`` (the power without its bias subtracted); ``network``
    and ``network_kernel`` (their NTK, same sets) [seeds, network_n].
    """
    rows = [_seed(settings, seed) for seed in settings.seeds]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    arrays |= {"n": np.array(settings.n), "network_n": np.array(settings.network_n),
               "index": np.arange(1, settings.top + 1)}  # fmt: skip
    scores = [relative_gap("eigenvalues to ansatz", arrays["eigenvalues"], arrays["eigenvalues_theory"])]
    scores += [
        relative_gap(f"kernel regression to ansatz, n = {n}", arrays["measured"][:, i : i + 1],
                     arrays["theory"][:, i : i + 1])
        for i, n in enumerate(settings.n)
    ]  # fmt: skip
    if settings.networks:
        scores.append(relative_gap("networks to their NTK", arrays["network"], arrays["network_kernel"]))
    return result(tuple(scores), arrays, {**store.plain(settings), **_page(settings)})


def _seed(settings: HermiteImages, seed: int) -> dict[str, np.ndarray]:
    task = cifar10(classes=None, n_train=settings.images, n_test=1, seed=seed_of("data", seed), inputs="raw", size=8)
    labels = task.y_train.argmax(1)
    y = torch.where(torch.isin(labels, torch.tensor(ANIMALS)), 1.0, -1.0).double()
    pixels = task.x_train.double().flatten(1)
    pixels = pixels - pixels.mean(0)
    x = pixels / pixels.square().sum(1).mean().sqrt()

    def kernel(a: Tensor, b: Tensor | None = None) -> Tensor:
        other = a if b is None else b
        squared = a.square().sum(1)[:, None] + other.square().sum(1) - 2 * a @ other.T
        return (-squared / (2 * settings.scale**2)).exp()

    white = whitening(x)
    spectrum = hermite_spectrum(kernel, white.variances, settings.modes, settings.degrees)
    flat = hermite_spectrum(kernel, torch.full_like(white.variances, float(white.variances.mean())), settings.top)
    top = settings.top
    target = spectrum.target(white(x), y)
    naive, _ = torch.linalg.qr(spectrum.features(white(x)))
    biased = replace(target, power=(naive.T @ y) ** 2 / len(y))
    found = {
        "eigenvalues": sample_spectrum(kernel(x[: settings.sample])).eigenvalues[:top].numpy(),
        "eigenvalues_theory": spectrum.eigenvalues[:top].numpy(),
        "eigenvalues_wrong": flat.eigenvalues[:top].numpy(),
        "theory": spectrum.predict(target, list(settings.n), settings.ridge).test_mse.numpy(),
        "biased": spectrum.predict(biased, list(settings.n), settings.ridge).test_mse.numpy(),
    }
    gram = kernel(x)
    rng = torch.Generator().manual_seed(seed_of("sets", seed))
    found["measured"] = np.array([
        float(kernel_trials(gram, y[:, None], n, trials=settings.trials, generator=rng, ridge=settings.ridge)
              .test_mse.mean())
        for n in settings.n
    ])  # fmt: skip
    return found | (_networks(settings, x, y[:, None], seed) if settings.networks else {})


def _networks(settings: HermiteImages, x: Tensor, y: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Networks on inputs of norm about sqrt d, and regression with their infinite-width NTK on the same sets."""
    x = x[: settings.sample] * x.shape[1] ** 0.5
    y = y[: settings.sample]
    gram = ntk(x.shape[1], 1)(x)
    trainer = Trainer(accelerated=True, step=1.0, tolerance=1e-3, max_steps=20_000, snapshots=2)
    network_errors, kernel_errors = [], []
    for n in settings.network_n:
        rng = torch.Generator().manual_seed(seed_of("networks", seed, n))
        trials = kernel_trials(gram, y, n, trials=settings.networks, generator=rng)
        outputs, _ = fit_networks(network(x.shape[1], settings.width, 1), trainer, x, y, trials.drawn, first_init=seed)
        outside = torch.ones(len(trials.drawn), len(x), dtype=torch.bool).scatter_(1, trials.drawn, False)
        network_errors.append(float(((outputs[:, 0, 0] - y[:, 0]) ** 2)[outside].mean()))
        kernel_errors.append(float(trials.test_mse.mean()))
    return {"network": np.array(network_errors), "network_kernel": np.array(kernel_errors)}


def _page(settings: HermiteImages) -> dict[str, Any]:
    spectra = (Curve("ansatz", "eigenvalues_theory", "theory"), Curve("CIFAR-10", "eigenvalues", "kernel"))
    curves = (Curve("ansatz", "theory", "theory"), Curve("kernel regression", "measured", "kernel"),
              Curve("biased coefficients", "biased", "theory"))  # fmt: skip
    panels = [
        Panel("Eigenvalues", "index", "index", "eigenvalue", spectra, True, True),
        Panel("Vehicles against animals", "n", "training points n", "test MSE", curves, True),
    ]
    if settings.networks:
        both = (Curve("networks", "network", "network"), Curve("their NTK", "network_kernel", "kernel"))
        panels.append(Panel("Networks on the same images", "network_n", "training points n", "test MSE", both, True))
    text = (
        "The ansatz sees the covariance of the images, the kernel's Taylor series and the labels' Hermite "
        "coefficients; no Gram matrix. Networks have another kernel, their NTK, and stand beside its regression, from "
        f"which those of width {settings.width} still depart."
    )
    return page("Hermite eigenstructure of CIFAR-10", text, tuple(panels))
