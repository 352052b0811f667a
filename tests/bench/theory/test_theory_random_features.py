"""Random features: published equations by bisection, limits, and ridge regression on drawn features."""

import itertools

import numpy as np
import pytest
import torch

from bench.theory.eigenlearning import eigenlearning
from bench.theory.random_features import random_features

LAM = np.arange(1, 301.0) ** -1.5
V2 = np.arange(1, 301.0) ** -1.2


def published(lam, v2, n, k, ridge, noise):
    """The equations as published, one of them eliminated, g by bisection in extended precision."""
    a, b = lam.astype(np.longdouble), v2.astype(np.longdouble)
    low, high = np.longdouble(1e-40), np.longdouble(1e10)
    for _ in range(90):
        g = np.sqrt(low * high)
        z = (a / (a + g)).sum()
        beyond = z < min(n, k) and (n - z) * (k - z) > ridge * k / g
        low, high = (low, g) if beyond else (g, high)
    z, q = (a / (a + g)).sum(), ((a / (a + g)) ** 2).sum()
    kappa = g * (k - z) / k
    bracket = ((g / (a + g) - kappa * a / (a + g) ** 2 * k / (k - q)) * b).sum() + noise
    test = bracket / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    values = [float(x) for x in (g, kappa, test, (ridge / (n * kappa)) ** 2 * test)]
    # k - z is a difference of sums of 300 terms, and enters squared.
    return values, 1e-11 + float(np.finfo(np.longdouble).eps * 40 * k / (k - z))


def test_published_equations():
    cases = itertools.product((3, 50.5, 250), (2.5, 50.5, 60, 1e4), (1e-8, 1e-2, 5.0), (0.0, 0.3))
    for n, k, ridge, noise in cases:
        found = random_features(LAM, V2, n, k, ridge, noise)
        values = [float(x) for x in (found.feature_kappa, found.kappa, found.test_mse, found.train_mse)]
        expected, rounding = published(LAM, V2, n, k, ridge, noise)
        assert values == pytest.approx(expected, rel=rounding), (n, k, ridge, noise)
        assert rounding < 1e-7


def test_many_features_are_the_kernel():
    n = torch.tensor([5.0, 40.0, 200.0])
    for ridge in (0.0, 0.1, 10.0):
        kernel = eigenlearning(LAM, V2, n, ridge, 0.2)
        wide = random_features(LAM, V2, n, 1e12, ridge, 0.2)  # corrections of order n / k
        for field in ("kappa", "test_mse", "train_mse", "learnability", "overfitting_coefficient"):
            torch.testing.assert_close(getattr(wide, field), getattr(kernel, field), rtol=1e-8, atol=1e-14)


def test_without_ridge():
    # n < k: sum L = n. n > k: least squares on k parameters. n / (n - rank) beyond the rank.
    over, peak, under = (random_features(LAM, V2, n, 60, 0.0, 0.1) for n in (40, 60, 90))
    assert float(over.learnabilities.sum()) == pytest.approx(40, rel=1e-12)
    assert float(under.learnabilities.sum()) == pytest.approx(60, rel=1e-12)
    assert over.train_mse == 0
    assert under.kappa == 0
    assert float(under.overfitting_coefficient) == pytest.approx(90 / 30, rel=1e-12)
    assert peak.test_mse == torch.inf
    assert peak.train_mse == 0
    saturated = random_features([1.0, 0.2, 0.0], [1, 1, 0.5], 8, 5, noise=0.1)
    assert float(saturated.test_mse) == pytest.approx(8 / 6 * 0.6)
    assert float(saturated.train_mse) == pytest.approx((1 - 2 / 8) * 0.6)
    near = random_features([1.0, 0.2, 0.0], [1, 1, 0.5], 8, 5, ridge=1e-12, noise=0.1)
    assert float(near.test_mse) == pytest.approx(float(saturated.test_mse), rel=1e-9)


def test_batches_are_their_single_cases():
    v2 = np.stack([V2, LAM])
    n, k = torch.tensor([5.0, 50.0])[:, None], torch.tensor([20.0, 50.0, 400.0])[:, None, None]
    found = random_features(LAM, v2, n, k, 0.1, 0.2)
    assert found.test_mse.shape == (3, 2, 2)
    for i, j, target in itertools.product(range(3), range(2), range(2)):
        one = random_features(LAM, v2[target], float(n[j]), float(k[i]), 0.1, 0.2)
        assert float(found.test_mse[i, j, target]) == pytest.approx(float(one.test_mse), rel=1e-13)
        assert float(found.train_mse[i, j, target]) == pytest.approx(float(one.train_mse), rel=1e-13)


def test_regression_on_drawn_features():
    """Gaussian features and inputs of M = 200 modes: corrections are of relative order 1 / min(n, k, |n - k|).

    Measured over 60 draws; a coefficient of 2 before that order, plus 4 standard errors, was not tuned: E_0 - 1, the
    part that fluctuates, is of order 1 away from the peak.
    """
    modes, trials = 200, 60
    lam = torch.arange(1, modes + 1, dtype=torch.float64) ** -1.3
    v = torch.arange(1, modes + 1, dtype=torch.float64) ** -0.6
    rng = torch.Generator().manual_seed(0)
    for n, k, ridge, noise in ((40, 90, 0.02, 0.0), (90, 40, 0.02, 0.3), (60, 60, 1.0, 0.1), (30, 150, 0.0, 0.2)):
        x = torch.randn(trials, n, modes, generator=rng, dtype=torch.float64)
        weights = torch.randn(trials, modes, k, generator=rng, dtype=torch.float64)
        y = x @ v + noise**0.5 * torch.randn(trials, n, generator=rng, dtype=torch.float64)
        mixing = lam.sqrt()[:, None] * weights / k**0.5  # [trials, M, k]: psi(x) = mixing^T x
        psi = x @ mixing
        gram = psi @ psi.mT + ridge * torch.eye(n, dtype=torch.float64)
        dual = torch.linalg.solve(gram, y[..., None])
        learned = (mixing @ (psi.mT @ dual))[..., 0]
        test = ((learned - v) ** 2).sum(1) + noise
        train = (ridge * dual[..., 0]).square().mean(1)
        found = random_features(lam, v**2, n, k, ridge, noise)
        order = 2 / (min(n, k, abs(n - k)) if n != k else n)
        for measured, predicted in ((test, found.test_mse), (train, found.train_mse)):
            error = 4 * float(measured.std()) / trials**0.5
            assert abs(float(measured.mean() - predicted)) <= error + order * float(predicted), (n, k)
        kernel = float(eigenlearning(lam, v**2, n, ridge, noise).test_mse)
        if k < 100:  # the control: the theory of infinitely many features is rejected
            assert abs(float(test.mean()) - kernel) > 4 * float(test.std()) / trials**0.5 + order * kernel, (n, k)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0}, "n must be above 0"),
        ({"features": 0}, "features must be above 0"),
        ({"features": [1.0, 2.0, 3.0], "n": [1, 2]}, "batch shapes must broadcast"),
        ({"ridge": -1}, "ridge must be at least 0"),
    ],
)
def test_bad_input(arguments, sentence):
    good = {"eigenvalues": [1.0, 0.5], "target_power": [1.0, 1.0], "n": 1, "features": 3}
    with pytest.raises(ValueError, match=sentence):
        random_features(**{**good, **arguments})
