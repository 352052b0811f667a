"""Slopes at the first point, the parity bound, GCV, early stopping, and the refusals of all of them."""

import math

import pytest
import torch
from theory_references import corners, network_kernel

from bench.predict import KernelPredictor
from bench.theory.bounds import first_point_mse, initial_slopes, parity_bound, points_for_parity
from bench.theory.early_stopping import crossover_time, effective_ridge, largest_stable_step
from bench.theory.eigenlearning import eigenlearning
from bench.theory.estimators import gcv
from bench.theory.finite_population import finite_population
from bench.theory.hypercube import hypercube_spectrum
from bench.theory.sample import sample_spectrum
from bench.theory.shift import shifted_mse
from bench.theory.trials import kernel_trials

LAM = torch.tensor([1.0, 0.4, 0.05, 0.0], dtype=torch.float64)
COUNTS = torch.tensor([1.0, 4.0, 10.0, 2.0], dtype=torch.float64)


def test_slopes_at_no_point():
    slopes = initial_slopes(LAM, COUNTS)
    n = 1e-6  # the next order of the curve is n^2
    found = eigenlearning(LAM, torch.eye(4), n, multiplicities=COUNTS)
    torch.testing.assert_close((found.test_mse - 1) / n, slopes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first_point_mse(LAM, torch.eye(4), multiplicities=COUNTS), 1 + slopes)
    threshold = (COUNTS * LAM**2).sum() / (2 * (COUNTS * LAM).sum())
    assert ((slopes > 0) == (threshold > LAM)).all()


@pytest.mark.parametrize("depth", [2, 4])
def test_no_kernel_learns_the_parity_faster_than_the_bound(depth):
    d = 6
    n = torch.arange(1, 33)
    spectrum = hypercube_spectrum(network_kernel(d, depth), d)
    power = torch.eye(d + 1)[d]
    found = eigenlearning(spectrum.eigenvalues, power, n, multiplicities=spectrum.multiplicities)
    bound = parity_bound(n, d)
    assert (found.learnability <= bound.learnability + 1e-12).all()
    assert (found.test_mse >= bound.mse - 1e-12).all()
    x = corners(d)
    rng = torch.Generator().manual_seed(0)
    for size in (8, 24):
        target = x.prod(1, keepdim=True)
        trials = kernel_trials(network_kernel(d, depth)(x), target, size, trials=50, generator=rng)
        mean, error = trials.mean("learnability")
        assert float(mean) <= float(bound.learnability[size - 1]) + 3 * float(error)
    assert parity_bound(40, d).mse == 0
    assert float(points_for_parity(bound.mse[9], d)) == pytest.approx(10)
    assert float(points_for_parity(0.25, 4)) == pytest.approx(4)


def test_gcv_is_the_formula_and_its_limit():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    kernel, y = x @ x.T, torch.randn(12, 3, generator=rng, dtype=torch.float64)
    ridges = torch.tensor([0.0, 0.1, 5.0], dtype=torch.float64)
    found = gcv(kernel, y, ridges)
    for row, ridge in enumerate(ridges):
        inverse = torch.linalg.inv(kernel + ridge * torch.eye(12))
        expected = 12 * ((inverse @ y) ** 2).sum(0) / torch.trace(inverse) ** 2
        torch.testing.assert_close(found.test_mse[row], expected, rtol=1e-8, atol=0)
        torch.testing.assert_close(found.train_mse[row], ((ridge * inverse @ y) ** 2).mean(0), rtol=1e-8, atol=0)
        torch.testing.assert_close(found.kappa[row], 1 / torch.trace(inverse), rtol=1e-8, atol=0)
    singular = x[:, :5] @ x[:, :5].T
    limit, small = gcv(singular, y[:, 0], 0.0), gcv(singular, y[:, 0], 1e-9)
    assert limit.kappa == 0
    torch.testing.assert_close(limit.test_mse, small.test_mse, rtol=1e-6, atol=0)
    torch.testing.assert_close(limit.train_mse, small.train_mse, rtol=1e-6, atol=0)


def test_a_prediction_is_consistent_with_gcv():
    # E_tr = (delta / (n kappa))^2 E_te is GCV with kappa = 1 / Tr (K + delta)^-1.
    found = eigenlearning(LAM, [1, 1, 1, 1], 6, 0.3, 0.1, COUNTS)
    torch.testing.assert_close(found.train_mse * (6 * found.kappa / 0.3) ** 2, found.test_mse)


def test_early_stopping():
    assert float(effective_ridge(100, 50.0)) == 2
    assert float(effective_ridge(100, 50.0, momentum=0.9)) == pytest.approx(0.2)
    assert effective_ridge([10, 20], [[1.0], [2.0]]).shape == (2, 2)
    time = crossover_time(LAM, torch.tensor([0.5, 4.0, 15.0]), COUNTS)
    torch.testing.assert_close(1 / time[:2], eigenlearning(LAM, LAM, [0.5, 4.0], multiplicities=COUNTS).kappa)
    assert time[2] == math.inf
    # A ridge of n / t at the crossover matters as much as the sample: kappa is concave in the ridge, of slope E_0 / n.
    ridge = effective_ridge(4.0, time[1])
    kappa = eigenlearning(LAM, LAM, 4.0, ridge, multiplicities=COUNTS).kappa
    e_0 = eigenlearning(LAM, LAM, 4.0, multiplicities=COUNTS).overfitting_coefficient
    assert 1 < float(kappa * time[1]) < 1 + float(e_0)


def test_a_stopped_flow_is_roughly_a_ridge():
    """On the 8-cube, at every time: within 15 % (a mode's error is (1 + u)^-1 for ridge and e^-u for the flow, u its
    learning rate x time: at most .2 apart), while a tenth of the ridge is off by more than that somewhere."""
    x, n, trials = corners(8), 64, 12
    kernel = network_kernel(8)(x)
    target = ((x[:, 0] + x[:, :2].prod(1) + x[:, :3].prod(1)) / 3**0.5)[:, None]
    spectrum = sample_spectrum(kernel)
    rng = torch.Generator().manual_seed(0)
    gaps = []
    for time in (1.0, 10.0, 100.0, 1000.0):
        errors = []
        for _ in range(trials):
            order = torch.randperm(256, generator=rng)
            train, test = order[:n], order[n:]
            flow = KernelPredictor(kernel[train][:, train], time=time).fit(target[train])
            errors.append((flow.predict(kernel[test][:, train]) - target[test]).square().mean())
        measured = torch.stack(errors)
        ridges = effective_ridge(n, time) * torch.tensor([1.0, 0.1])[:, None]
        predicted = finite_population(spectrum.eigenvalues, spectrum.target(target).power, n, ridges).test_mse[:, 0]
        error = 3 * measured.std() / trials**0.5
        gaps.append(((measured.mean() - predicted).abs() - error) / predicted)
    right, wrong = torch.stack(gaps, 1)
    assert (right < 0.15).all()
    assert (wrong > 0.15).any()


def test_the_largest_stable_step():
    kernel = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    for momentum in (0.0, 0.6):
        limit = largest_stable_step(2, 3.0, momentum)
        for factor, converges in ((0.99, True), (1.01, False)):
            residual = before = torch.ones(2, dtype=torch.float64)
            for _ in range(2000):
                step = factor * limit / 2 * kernel @ residual
                residual, before = residual - step + momentum * (residual - before), residual
            assert bool(residual.abs().max() < 1) == converges


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: first_point_mse([0.0], [1.0]), "eigenvalues must hold at least one above 0"),
        (lambda: initial_slopes([0.0, 0.0]), "eigenvalues must hold at least one above 0"),
        (lambda: parity_bound(-1, 3), "n must be at least 0"),
        (lambda: parity_bound(1, 0), "d must be at least 1"),
        (lambda: points_for_parity(0.5, 0), "d must be at least 1"),
        (lambda: effective_ridge(5, 0.0), "time must be above 0"),
        (lambda: effective_ridge(5, 1.0, momentum=1.0), "momentum must be from 0 to below 1"),
        (lambda: largest_stable_step(5, 0.0), "largest_eigenvalue above 0"),
        (lambda: gcv(torch.ones(3, 2), torch.ones(3)), "k_train must be"),
        (lambda: gcv(torch.eye(3), torch.ones(2)), "k_train must be"),
        (lambda: gcv(-torch.eye(3), torch.ones(3)), "k_train is not positive semidefinite"),
        (lambda: gcv(torch.eye(3) * math.nan, torch.ones(3)), "k_train must be finite"),
        (lambda: gcv(torch.eye(3), torch.ones(3), -1.0), "ridge must be at least 0"),
        (
            lambda: shifted_mse(eigenlearning([1.0], [1.0], 1, multiplicities=[2]), [1.0], [[1.0]]),
            "each mode by itself",
        ),
        (lambda: shifted_mse(eigenlearning([1.0], [1.0], 1), [1.0], [1.0]), "moments must be a symmetric"),
        (lambda: shifted_mse(eigenlearning([1.0], [1.0], 1), [2.0], [[1.0]]), "coefficients must be those"),
        (lambda: eigenlearning([1.0], [1.0], 1).mean_squared_gradient([1.0, 2.0]), "gradients must be"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
