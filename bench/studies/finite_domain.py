"""Kernel regression on the whole hypercube, averaged over many training sets, beside every formula of the theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.record import Record
from bench.studies.populations import corners, ntk, parities
from bench.studies.study import result
from bench.theory.bounds import parity_bound
from bench.theory.eigenlearning import eigenlearning
from bench.theory.finite_population import finite_population
from bench.theory.hypercube import hypercube_spectrum
from bench.theory.shift import shifted_mse
from bench.theory.trials import kernel_trials
from bench.trained import seed_of

FIELDS = ("total_learnability", "population_mse", "test_mse", "label_train_mse")


@dataclass(frozen=True)
class FiniteDomain:
    """Settings: each seed is ``case_trials`` training sets of every case and ``trials`` for all else.

    The target is a sum of four parities.

    Attributes:
        cases: (n, ridge, noise) each.
        moments_n: training points for the moments of the learned coefficients, without ridge and noise.
        bound_n: training points for the parity bound.
    """

    d: int = 8
    depth: int = 4
    cases: tuple[tuple[float, float, float], ...] = (
        (32.0, 1.0, 0.0), (128.0, 1.0, 0.0), (128.0, 0.0, 0.3), (128.0, 1.0, 0.3),
    )  # fmt: skip
    moments_n: tuple[int, ...] = (32, 64)
    bound_n: tuple[int, ...] = (4, 16, 64, 128)
    bound_depths: tuple[int, ...] = (1, 2, 4)
    case_trials: int = 200
    trials: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def finite_domain(settings: FiniteDomain) -> Record:
    """Every array has a leading seed axis (1 for theory); cases, then the fields of ``FIELDS``.

    ``measured`` [seeds, cases, fields], ``finite`` and ``plain`` [1, cases, fields] (plain eigenlearning has one test
    error, and in its train error the noise). ``variance_ratio`` [seeds, moments_n, levels]: variance of the learned
    coefficients over L^2 E / n, averaged over a level (``variance_wrong``: over L E / n); ``bias_ratio``,
    ``spread_ratio`` [seeds, moments_n]: of bias and variance of the error. ``shifted`` [seeds, moments_n],
    ``shifted_theory`` and ``unshifted_theory`` [1, moments_n]: test MSE under reweighted inputs. ``parity``
    [seeds, depths, bound_n]: learnability of the parity of all bits, ``parity_theory`` and ``parity_bound`` [1, ...].
    """
    x, basis = corners(settings.d), parities(settings.d)
    codes = [0, 1, 6, 56]  # parities of 0, 1, 2 and 3 bits
    v = torch.zeros(len(x), dtype=torch.float64)
    v[codes] = torch.tensor([0.3, 0.6, 0.6, 0.4], dtype=torch.float64)
    kernel = ntk(settings.d, settings.depth)(x)
    modes = torch.stack([(kernel @ basis[:, i] * basis[:, i]).mean() / len(x) for i in range(len(x))])
    arrays = _cases(settings, kernel, basis @ v, modes, v) | _moments(settings, kernel, x, basis, modes, v)
    return result((), arrays | _parity(settings, x), store.plain(settings))


def _cases(settings: FiniteDomain, kernel: Tensor, target: Tensor, modes: Tensor, v: Tensor) -> dict[str, np.ndarray]:
    measured = np.zeros((len(settings.seeds), len(settings.cases), len(FIELDS)))
    finite, plain = (np.zeros((1, len(settings.cases), len(FIELDS))) for _ in range(2))
    for j, (n, ridge, noise) in enumerate(settings.cases):
        for i, seed in enumerate(settings.seeds):
            rng = torch.Generator().manual_seed(seed_of("sets", seed, j))
            found = kernel_trials(
                kernel, target[:, None], int(n), trials=settings.case_trials, generator=rng, ridge=ridge, noise=noise
            )
            measured[i, j] = [float(getattr(found, field).mean()) for field in FIELDS]
        without = finite_population(modes, v**2, n, ridge, noise)
        finite[0, j] = [float(getattr(without, field)) for field in FIELDS]
        with_ = eigenlearning(modes, v**2, n, ridge, noise)
        error = float(with_.clean_test_mse)
        plain[0, j] = [float(with_.total_learnability), error, error, float(with_.train_mse)]
    return {"measured": measured, "finite": finite, "plain": plain}


def _moments(
    settings: FiniteDomain, kernel: Tensor, x: Tensor, basis: Tensor, modes: Tensor, v: Tensor
) -> dict[str, np.ndarray]:
    level = x.lt(0).sum(1)
    tilt = (x @ torch.linspace(0.8, 0.1, settings.d, dtype=torch.float64)).exp()
    weights = tilt / tilt.sum()
    overlaps = basis.T @ (weights[:, None] * basis)
    rows: dict[str, list[list[Any]]] = {}
    for n in settings.moments_n:
        theory = eigenlearning(modes, v**2, n)
        values: dict[str, list[Any]] = {"shifted_theory": [float(shifted_mse(theory, v, overlaps))],
                                        "unshifted_theory": [float(theory.test_mse)]}  # fmt: skip
        for seed in settings.seeds:
            rng = torch.Generator().manual_seed(seed_of("moments", seed, n))
            found = kernel_trials(
                kernel, (basis @ v)[:, None], n, trials=settings.trials, generator=rng, basis=basis
            ).coefficients
            assert found is not None
            learned = found[:, :, 0]
            ratio = learned.var(0) / theory.coefficient_variance
            wrong = ratio * theory.learnabilities
            scale = settings.trials / (settings.trials - 1)
            bias = (learned.mean(0) - v).square().sum() - learned.var(0).sum() / settings.trials
            spread = (learned - learned.mean(0)).square().sum(1).mean() * scale
            off = (learned - v) @ basis.T
            for name, value in (
                ("variance_ratio", [float(ratio[level == k].mean()) for k in range(settings.d + 1)]),
                ("variance_wrong", [float(wrong[level == k].mean()) for k in range(settings.d + 1)]),
                ("bias_ratio", float(bias / (theory.test_mse - theory.variance))),
                ("spread_ratio", float(spread / theory.variance)),
                ("shifted", float((off**2 @ weights).mean())),
            ):
                values.setdefault(name, []).append(value)
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    return {name: np.array(value).swapaxes(0, 1) for name, value in rows.items()}


def _parity(settings: FiniteDomain, x: Tensor) -> dict[str, np.ndarray]:
    target = x.prod(1, keepdim=True)
    shape = (len(settings.bound_depths), len(settings.bound_n))
    measured, theory = np.zeros((len(settings.seeds), *shape)), np.zeros((1, *shape))
    for a, depth in enumerate(settings.bound_depths):
        kernel = ntk(settings.d, depth)
        gram, spectrum = kernel(x), hypercube_spectrum(kernel, settings.d)
        for b, n in enumerate(settings.bound_n):
            power = torch.zeros(settings.d + 1, dtype=torch.float64)
            power[-1] = 1
            found = eigenlearning(
                spectrum.eigenvalues, power, n, multiplicities=spectrum.multiplicities, tail=spectrum.tail
            )
            theory[0, a, b] = float(found.learnability)
            for i, seed in enumerate(settings.seeds):
                rng = torch.Generator().manual_seed(seed_of("parity", seed, depth, n))
                trials = kernel_trials(gram, target, n, trials=settings.trials, generator=rng)
                measured[i, a, b] = float(trials.learnability.mean())
    bound = parity_bound(list(settings.bound_n), settings.d).learnability.numpy()
    return {"parity": measured, "parity_theory": theory, "parity_bound": np.tile(bound, (1, shape[0], 1))}
