"""1,524 cases of eigenlearning, and 192 of random features, against Brent's method on the equations as published.

A case agrees where each prediction is within 1e-7 of the reference, or within 100 times the reference's own violation
of the constraint on kappa, whichever is larger; that violation is 3e-15 of n, so that it is always the former.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import comb, eval_gegenbauer, roots_legendre
from theory_references import corners, network_kernel

from bench.theory.eigenlearning import eigenlearning
from bench.theory.random_features import random_features

LARGEST = 1e-7
LARGEST_FEATURES = 5e-5
FIELDS = ("kappa", "overfitting_coefficient", "test_mse", "bias", "variance", "train_mse", "learnability")


class Levels(NamedTuple):
    eigenvalues: np.ndarray
    counts: np.ndarray


def _modes(eigenvalues: np.ndarray) -> Levels:
    return Levels(np.asarray(eigenvalues, dtype=np.float64), np.ones(len(eigenvalues)))


def _cube(d: int, depth: int) -> Levels:
    """Of the whole Gram matrix: one function of each level is an eigenvector."""
    x = corners(d)
    gram = network_kernel(d, depth)(x.double())
    eigenvalues = [float((gram[0] @ x[:, :k].prod(1)) * x[0, :k].prod()) / 2**d for k in range(d + 1)]
    return Levels(np.clip(eigenvalues, 0, None), np.array([comb(d, k, exact=True) for k in range(d + 1)], dtype=float))


def _circle(points: int) -> Levels:
    angles = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    gram = network_kernel(2)(2**0.5 * torch.stack([angles.cos(), angles.sin()], 1))
    return _modes(np.clip(np.linalg.eigvalsh(gram.numpy())[::-1] / points, 0, None))


def _sphere(d: int, degrees: int) -> Levels:
    """Funk and Hecke's integral with Gegenbauer's polynomials, by Gauss and Legendre's rule in the angle."""
    nodes, weights = roots_legendre(600)
    angles = math.pi / 2 * (nodes + 1)
    x = np.zeros((len(angles) + 1, d))
    x[0, 0], x[1:, 0], x[1:, 1] = 1, np.cos(angles), np.sin(angles)
    values = network_kernel(d)(torch.from_numpy(x[:1] * d**0.5), torch.from_numpy(x[1:] * d**0.5))[0].numpy()
    weights = weights * np.sin(angles) ** (d - 2)
    weights /= weights.sum()
    alpha = d / 2 - 1
    degree = np.arange(degrees + 1)
    zonal = [eval_gegenbauer(k, alpha, np.cos(angles)) / eval_gegenbauer(k, alpha, 1.0) for k in degree]
    counts = [comb(d + k - 1, k, exact=True) - (comb(d + k - 3, k - 2, exact=True) if k > 1 else 0) for k in degree]
    return Levels(np.clip([(weights * values * p).sum() for p in zonal], 0, None), np.array(counts, dtype=float))


SPECTRA = {
    "power 1.1": lambda: _modes(np.arange(1, 501.0) ** -1.1),
    "power 1.5": lambda: _modes(np.arange(1, 501.0) ** -1.5),
    "power 2": lambda: _modes(np.arange(1, 501.0) ** -2),
    "power 4": lambda: _modes(np.arange(1, 501.0) ** -4),
    "exponential 5": lambda: _modes(np.exp(-np.arange(300) / 5)),
    "exponential 40": lambda: _modes(np.exp(-np.arange(300) / 40)),
    "levels": lambda: Levels(np.array([0.5, 0.1, 0.01, 1e-3, 2e-4]), np.array([1.0, 8, 28, 56, 163])),
    "levels far apart": lambda: Levels(np.array([1.0, 1e-5, 1e-10, 1e-15]), np.array([1.0, 10, 100, 1000])),
    "levels and zeros": lambda: Levels(np.array([1.0, 0.3, 0.02, 0.0]), np.array([2.0, 5, 600, 100])),
    "single level": lambda: Levels(np.array([0.7]), np.array([400.0])),
    "6-cube": lambda: _cube(6, 1),
    "8-cube": lambda: _cube(8, 4),
    "10-cube": lambda: _cube(10, 2),
    "circle 128": lambda: _circle(128),
    "circle 300": lambda: _circle(300),
    "7-sphere": lambda: _sphere(8, 12),
    "2-sphere": lambda: _sphere(3, 20),
}
N = (0.3, 1.0, 7.25, 40.0, 180.0)
RIDGES = (0.0, 1e-12, 1e-6, 1e-2, 1.0, 100.0)
NOISES = (0.0, 0.1, 2.0)


def reference(levels: Levels, power: np.ndarray, n: float, ridge: float, noise: float) -> tuple[list[float], float]:
    """FIELDS as published, their sums in extended precision, and the violation of the constraint, relative to n."""
    lam, m, v2 = (np.asarray(values, dtype=np.longdouble) for values in (*levels, power))

    def excess(t: float) -> float:
        kappa = np.exp(np.longdouble(t))
        return float((m * lam / (lam + kappa)).sum() + ridge / kappa - n)

    highest = math.log(float((m * lam).sum() + ridge) / n)
    t = brentq(excess, highest - 300, highest + 1e-6, xtol=1e-15, rtol=1e-15, maxiter=500)
    kappa = np.exp(np.longdouble(t))
    learned = lam / (lam + kappa)
    e_0 = n / (n - (m * learned**2).sum())
    bias = ((1 - learned) ** 2 * v2).sum() + noise
    test = e_0 * bias
    train = ridge**2 / (n * kappa) ** 2 * test
    values = (kappa, e_0, test, bias, test - bias, train, (learned * v2).sum() / v2.sum())
    return [float(x) for x in values], abs(excess(t)) / n


def cases(levels: Levels) -> list[tuple[float, float, float]]:
    """Without ridge below the rank only: beyond, kappa is 0 by definition (tested elsewhere)."""
    support = levels.counts[levels.eigenvalues > 0].sum()
    return [(n, ridge, noise) for n, ridge, noise in itertools.product(N, RIDGES, NOISES) if ridge or n < support]


@pytest.mark.parametrize("name", SPECTRA)
def test_every_case_agrees_with_brents_method(name: str) -> None:
    levels = SPECTRA[name]()
    power = levels.counts * np.arange(1, len(levels.counts) + 1) ** -1.5
    grid = cases(levels)
    n, ridge, noise = torch.tensor(grid, dtype=torch.float64).T
    found = eigenlearning(levels.eigenvalues, power, n, ridge, noise, levels.counts)
    for row, case in enumerate(grid):
        expected, violation = reference(levels, power, *case)
        values = [float(getattr(found, field)[row]) for field in FIELDS]
        assert violation < 1e-12  # else the reference is none
        tolerance = max(LARGEST, 100 * violation)
        # A variance far below the bias is a difference in the reference: 64 bits of the test error are left of it.
        floor = 1e-18 / LARGEST * expected[2]
        assert values == pytest.approx(expected, rel=tolerance, abs=floor * tolerance), case


def test_there_are_as_many_cases_as_it_says() -> None:
    counts = [len(cases(make())) for make in SPECTRA.values()]
    assert sum(counts) == 1524


FEATURE_SPECTRA = ("power 1.5", "exponential 40", "levels", "8-cube")


@pytest.mark.parametrize("name", FEATURE_SPECTRA)
def test_random_features_agree_with_brents_method(name: str) -> None:
    """The two equations in g and kappa, one eliminated by kappa = g (k - z) / k; 48 cases a spectrum."""
    levels = SPECTRA[name]()
    power = levels.counts * np.arange(1, len(levels.counts) + 1) ** -1.5
    lam, m, v2 = (np.asarray(values, dtype=np.longdouble) for values in (*levels, power))
    grid = list(itertools.product((3.0, 20.0, 90.0), (5.0, 30.0, 100.0, 2000.0), (1e-6, 1e-2, 1.0), (0.0, 0.3)))
    n, k, ridge, noise = torch.tensor(grid, dtype=torch.float64).T
    found = random_features(levels.eigenvalues, power, n, k, ridge, noise, levels.counts)
    for row, (n_, k_, ridge_, noise_) in enumerate(grid):

        def excess(t: float, n_: float = n_, k_: float = k_, ridge_: float = ridge_) -> float:
            """z + delta / kappa - n; infinite where so little is left unlearned that k features do not suffice."""
            g = np.exp(np.longdouble(t))
            z = (m * lam / (lam + g)).sum()
            return float(z + ridge_ * k_ / (g * (k_ - z)) - n_) if z < k_ else 1e300

        t = brentq(excess, -80, 40, xtol=1e-15, rtol=1e-15, maxiter=1000)
        g = np.exp(np.longdouble(t))
        learned = lam / (lam + g)
        z, q = (m * learned).sum(), (m * learned**2).sum()
        kappa = g * (k_ - z) / k_
        terms = (g / (lam + g) - kappa * lam / (lam + g) ** 2 * k_ / (k_ - q)) * v2
        test = (terms.sum() + noise_) / (1 - (q * (k_ - 2 * z) + z**2) / (n_ * (k_ - q)))
        expected = [float(x) for x in (g, kappa, test, (ridge_ / (n_ * kappa)) ** 2 * test)]
        values = [float(getattr(found, field)[row]) for field in ("feature_kappa", "kappa", "test_mse", "train_mse")]
        tolerance = max(LARGEST_FEATURES, 100 * abs(excess(t)) / n_)
        assert values == pytest.approx(expected, rel=tolerance, abs=0), grid[row]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_any_number_of_points_in_any_type(dtype: type) -> None:
    """n from none to 1e9 in one array, exact in each of these types."""
    lam, power, ridge = np.array([1.0, 0.25, 0.0625], dtype=np.float32), [1.0, 2.0, 4.0], 0.5
    n = np.array([0, 1, 2, 1_000_000_000], dtype=dtype)
    found = eigenlearning(lam, power, n, ridge)
    assert found.test_mse.dtype == torch.float64
    assert float(found.test_mse[0]) == 7
    for row in (1, 2, 3):
        expected, violation = reference(Levels(lam.astype(float), np.ones(3)), np.array(power), float(n[row]), ridge, 0)
        values = [float(getattr(found, field)[row]) for field in FIELDS]
        assert values == pytest.approx(expected, rel=max(LARGEST, 100 * violation), abs=0)


def test_a_single_mode_is_a_quadratic_equation() -> None:
    """n = lam / (lam + kappa) + delta / kappa: n kappa^2 + (n lam - lam - delta) kappa - delta lam = 0."""
    lam, delta = 0.3, 0.2
    for n in (0.2, 1.0, 5.0, 1e4):
        b = n * lam - lam - delta
        expected = (-b + math.sqrt(b * b + 4 * n * delta * lam)) / (2 * n)
        assert float(eigenlearning([lam], [1.0], n, delta).kappa) == pytest.approx(expected, rel=1e-11)
