"""What eigenlearning says of kernel regression on independent points, measured.

The equations are those of Gaussian features; corrections on a cube of d bits are of relative order 1/n plus 1/d of the
error itself (features of one point are dependent), so a bound of 1/n + 1/d on a *ratio* is of order 1, not tuned. Tests
that are exact (isotropic Gaussian features, one point) have the standard error alone.
"""

import pytest
import torch
from theory_references import corners, network_kernel, parities

from bench.theory.bounds import first_point_mse
from bench.theory.eigenlearning import eigenlearning
from bench.theory.estimators import gcv
from bench.theory.hypercube import walsh
from bench.theory.sample import sample_spectrum
from bench.theory.shift import shifted_mse
from bench.theory.trials import kernel_trials

D, N, TRIALS, RIDGE, NOISE = 10, 32, 300, 3.0, 0.1


@pytest.fixture(scope="module")
def cube():
    """300 sets of 32 of 1024 corners (half of them with a corner twice); predictors in the basis of parities."""
    x, basis = corners(D), parities(D)
    kernel = network_kernel(D)(x)
    lam = walsh(kernel[0])
    v = torch.zeros(2**D, dtype=torch.float64)
    v[[0b1, 0b11, 0b111000, 0b1111111111]] = torch.tensor([0.8, -0.5, 0.3, 0.2], dtype=torch.float64)
    targets = torch.stack([basis @ v, basis[:, 0b11], 0 * basis[:, 0]], 1)
    rng = torch.Generator().manual_seed(0)
    trials = kernel_trials(
        kernel, targets, N, trials=TRIALS, generator=rng, ridge=RIDGE, noise=NOISE, replacement=True, basis=basis
    )
    power = torch.stack([v**2, torch.eye(2**D, dtype=torch.float64)[0b11], torch.zeros(2**D, dtype=torch.float64)])
    return kernel, basis, v, trials, eigenlearning(lam, power, N, RIDGE, NOISE)


def agree(measured, predicted, relative=1 / N + 1 / D):
    """Trials [T, ...] against a prediction [...]."""
    error = 4 * measured.std(0) / len(measured) ** 0.5
    off = (measured.mean(0) - predicted).abs()
    assert (off <= relative * predicted.abs() + error).all(), (measured.mean(0), predicted, error)


def test_errors(cube):
    _, _, _, trials, found = cube
    agree(trials.population_mse, found.clean_test_mse)
    agree(trials.label_train_mse, found.train_mse)
    agree(trials.learnability[:, :2], found.learnability[:2], relative=1 / N)
    agree(trials.total_learnability, found.total_learnability, relative=1 / N)
    agree(N - trials.total_learnability, found.ridge_budget)
    # Controls: no ridge, half of it, one per point, and the error of the mean predictor alone are rejected.
    for wrong in (0.0, RIDGE / 2, N * RIDGE):
        other = eigenlearning(found.eigenvalues, found.target_power, N, wrong, NOISE)
        with pytest.raises(AssertionError):
            agree(trials.population_mse, other.clean_test_mse)
    with pytest.raises(AssertionError):
        agree(trials.population_mse, found.bias - NOISE)


def test_moments_of_the_learned_coefficients(cube):
    _, _, v, trials, found = cube
    learned = trials.coefficients[:, :, 0]
    mean = learned.mean(0)
    error = 5 * learned.std(0) / TRIALS**0.5  # the worst of 1024
    assert ((mean - found.learnabilities * v).abs() <= v.abs() / N + error).all()
    level = torch.tensor([mode.bit_count() for mode in range(2**D)])
    for k in range(5):
        modes = level == k
        variance, expected = learned[:, modes].var(0).mean(), found.coefficient_variance[0, modes].mean()
        # The variance of one mode has the relative error sqrt(2 / trials), and modes of a level share the sets.
        tolerance = 1 / N + 1 / D + 4 * (2 / TRIALS) ** 0.5 / min(int(modes.sum()), 10) ** 0.5
        assert abs(float(variance / expected) - 1) < tolerance, k
    bias = ((mean - v) ** 2).sum() - (learned.var(0) / TRIALS).sum()
    assert float(bias) == pytest.approx(float(found.bias[0] - NOISE), rel=1 / N + 1 / D)
    assert float(learned.var(0).sum()) == pytest.approx(float(found.variance[0]), rel=1 / N + 1 / D)
    # Off-diagonal correlations scatter around 0: their mean over the 45 x 44 pairs of level 2.
    pairs = torch.corrcoef(learned[:, level == 2].T)
    mean_pair = (pairs.sum() - len(pairs)) / (len(pairs) * (len(pairs) - 1))
    assert abs(float(mean_pair)) < 0.03


def test_mean_squared_gradient(cube):
    _, _, _, trials, found = cube
    g = torch.tensor([float(mode.bit_count()) for mode in range(2**D)], dtype=torch.float64)
    measured = torch.einsum("tmc,m->tc", trials.coefficients**2, g)
    agree(measured, found.mean_squared_gradient(g))


def test_shifted_inputs(cube):
    _, basis, v, trials, found = cube
    tilt = (corners(D) @ torch.linspace(0.8, 0.1, D, dtype=torch.float64)).exp()
    weights = tilt / tilt.sum()
    moments = basis.T @ (weights[:, None] * basis)
    off = trials.coefficients[:, :, 0] - v
    measured = ((off @ basis.T) ** 2 @ weights) + NOISE
    one = eigenlearning(found.eigenvalues, v**2, N, RIDGE, NOISE)
    agree(measured, shifted_mse(one, v, moments))
    assert abs(float(shifted_mse(one, v, moments) / one.test_mse) - 1) > 0.1  # there is a shift to see
    torch.testing.assert_close(shifted_mse(one, v, torch.eye(2**D)), one.test_mse, rtol=1e-12, atol=0)


def test_estimates_from_training_sets_alone(cube):
    kernel, basis, v, trials, found = cube
    rng = torch.Generator().manual_seed(1)
    estimates, kappas = [], []
    for _ in range(200):
        rows = torch.randint(2**D, (N,), generator=rng)
        y = basis[rows] @ v + NOISE**0.5 * torch.randn(N, generator=rng, dtype=torch.float64)
        estimate = gcv(kernel[rows][:, rows], y, RIDGE)
        estimates.append(estimate.test_mse)
        kappas.append(estimate.kappa)
    agree(torch.stack(kappas), found.kappa, relative=1 / N)
    agree(torch.stack(estimates), trials.population_mse[:, 0].mean() + NOISE)


@pytest.mark.parametrize("n", [20, 60])
def test_isotropic_gaussian_features_are_exact(n):
    """M = 100 features without ridge: the mean error is (1 - n / M) |v|^2 + sigma^2 (M - 1) / (M - n - 1), exactly.

    (Inverse Wishart.) Eigenlearning has M / (M - n), so it is off by at most 1 / (M - n - 1) of itself.
    """
    modes, trials, sigma2 = 100, 300, 0.5
    rng = torch.Generator().manual_seed(n)
    x = torch.randn(trials, n, modes, generator=rng, dtype=torch.float64)
    y = x[:, :, 0] + sigma2**0.5 * torch.randn(trials, n, generator=rng, dtype=torch.float64)
    learned = (x.mT @ torch.linalg.solve(x @ x.mT, y[..., None]))[..., 0]
    learned[:, 0] -= 1
    measured = (learned**2).sum(1) + sigma2
    found = eigenlearning([1.0], [1.0], n, 0, sigma2, [modes])
    agree(measured, found.test_mse, relative=1 / (modes - n - 1))


def test_one_point_is_exact_and_can_be_worse_than_none():
    x, basis = corners(6), parities(6)
    kernel = network_kernel(6, depth=1)(x)
    lam = sample_spectrum(kernel).eigenvalues
    for mode in (0b1, 0b111, 0b111111):
        power = torch.zeros(64, dtype=torch.float64)
        values = walsh(kernel[0])
        power[mode] = 1
        for ridge, noise in ((0.0, 0.0), (0.8, 0.3)):
            # The mean over all 64 training points, and over the noise y = f + e by its variance.
            weight = 1 / (kernel.diagonal() + ridge)
            f = basis[:, mode]
            clean = ((kernel * (weight * f) - f[:, None]) ** 2).mean()
            spread = noise * ((kernel * weight) ** 2).mean()
            found = first_point_mse(values, power, ridge, noise)
            torch.testing.assert_close(found, clean + spread + noise, rtol=1e-10, atol=0)
    hard = first_point_mse(values, power)
    assert hard > 1
    assert float(lam.min()) < float((lam**2).sum() / (2 * lam.sum()))
