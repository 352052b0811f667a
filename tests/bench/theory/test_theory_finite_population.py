"""Sampling without replacement: the formulas against batched kernel regression, where the plain ones are far off."""

import itertools

import numpy as np
import pytest
import torch
from theory_references import corners, network_kernel, parities

from bench.theory.eigenlearning import eigenlearning
from bench.theory.finite_population import finite_population
from bench.theory.sample import sample_spectrum
from bench.theory.trials import kernel_trials

FIELDS = ("population_mse", "test_mse", "train_mse", "label_train_mse")


@pytest.fixture(scope="module")
def cube():
    x = corners(8)
    kernel = network_kernel(8)(x)
    targets = torch.stack([x[:, 0], x[:, 0] * x[:, 1] * x[:, 2], (x[:, 0] + x[:, :2].prod(1) + x.prod(1)) / 3**0.5], 1)
    return kernel, targets, sample_spectrum(kernel)


@pytest.mark.parametrize(
    ("n", "ridge", "noise", "plain_off"),
    [(128, 0.0, 0.3, 0.3), (128, 1.0, 0.3, 0.05), (128, 10.0, 0.0, 0.02), (200, 5.0, 0.1, 0.15), (64, 0.3, 0.0, 0.0)],
)
def test_against_kernel_regression(cube, n, ridge, noise, plain_off):
    """Within 2 % plus 3 standard errors, of 300 training sets; free compression is exact up to 1 / M = .4 %."""
    kernel, targets, spectrum = cube
    rng = torch.Generator().manual_seed(n)
    trials = kernel_trials(kernel, targets, n, trials=300, generator=rng, ridge=ridge, noise=noise)
    power = spectrum.target(targets).power
    found = finite_population(spectrum.eigenvalues, power, n, ridge, noise)
    total, error = trials.mean("total_learnability")
    assert abs(float(total - found.total_learnability)) <= 1e-3 * n + 3 * float(error)
    for field in FIELDS:
        measured, error = trials.mean(field)
        predicted = getattr(found, field)
        assert ((measured - predicted).abs() <= 0.02 * predicted + 3 * error + 1e-12).all(), field
    plain = eigenlearning(spectrum.eigenvalues, power, n, ridge, noise).clean_test_mse
    measured, error = trials.mean("population_mse")
    assert ((plain / measured - 1).abs() >= plain_off - 3 * error / measured).all()


def test_without_ridge_and_noise_it_is_eigenlearning(cube):
    _, targets, spectrum = cube
    power, n = spectrum.target(targets).power, torch.tensor([4.0, 100.0, 250.0])[:, None]
    found, plain = finite_population(spectrum.eigenvalues, power, n), eigenlearning(spectrum.eigenvalues, power, n)
    torch.testing.assert_close(found.kappa, plain.kappa, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.population_mse, plain.test_mse, rtol=1e-12, atol=0)
    assert (found.train_mse == 0).all()


def test_many_points_are_eigenlearning_with_ridge_and_noise():
    # 1e9 points: corrections of order n / M.
    lam, counts, v2 = [1e-4, 1e-8, 0.0], [10, 10**4, 10**9 - 10_010], [0.5, 0.3, 0.2]
    n = torch.tensor([5.0, 300.0])
    found = finite_population(lam, v2, n, 1e-5, 0.4, counts)
    plain = eigenlearning(lam, v2, n, 1e-5, 0.4, counts)
    torch.testing.assert_close(found.population_mse, plain.clean_test_mse, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.test_mse, plain.clean_test_mse, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.label_train_mse, plain.train_mse, rtol=2e-6, atol=0)


def test_on_all_points_it_is_the_exact_solution(cube):
    kernel, targets, spectrum = cube
    power, m = spectrum.target(targets).power, 256
    for ridge, noise in ((0.0, 0.3), (2.0, 0.0), (2.0, 0.3)):
        found = finite_population(spectrum.eigenvalues, power, m, ridge, noise)
        hat = torch.linalg.solve(kernel + ridge * torch.eye(m, dtype=torch.float64), kernel)
        left = ((targets - hat @ targets) ** 2).mean(0)
        clean = left + noise * (hat**2).sum() / m
        labels = left + noise * ((torch.eye(m, dtype=torch.float64) - hat) ** 2).sum() / m
        torch.testing.assert_close(found.population_mse, clean, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(found.train_mse, clean, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(found.label_train_mse, labels, rtol=1e-8, atol=1e-12)
        assert found.test_mse.isnan().all()


def test_a_kernel_of_low_rank_without_ridge_is_the_limit_of_a_small_one():
    lam = torch.tensor([1.0, 0.3, 0.1, 0.0, 0.0, 0.0], dtype=torch.float64)
    counts, v2 = [1, 4, 5, 10, 10, 20], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]
    n = torch.tensor([7.0, 10.5, 30.0, 50.0])
    zero, small = finite_population(lam, v2, n, 0.0, 0.2, counts), finite_population(lam, v2, n, 1e-9, 0.2, counts)
    for field in FIELDS:
        torch.testing.assert_close(getattr(zero, field), getattr(small, field), rtol=1e-6, atol=1e-7, equal_nan=True)


def test_batches_of_the_finite_population_are_its_single_cases():
    lam, counts = torch.tensor([1.0, 0.3, 0.02, 0.0]).double(), [1, 5, 20, 6]
    v2 = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    n, ridge = torch.tensor([3.0, 6.0, 30.0])[:, None, None], torch.tensor([0.0, 2.0])[:, None]
    found = finite_population(lam, v2, n, ridge, 0.1, counts)
    assert found.kappa.shape == (3, 2, 1)
    for field in FIELDS:
        assert getattr(found, field).shape == (3, 2, 2)
        for i, j, k in itertools.product(range(3), range(2), range(2)):
            one = finite_population(lam, v2[k], n[i].item(), ridge[j].item(), 0.1, counts)
            torch.testing.assert_close(getattr(found, field)[i, j, k], getattr(one, field), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("mnist", (3, 8)), ("cifar10", (2, 9))])
def test_pairs_of_image_classes_at_a_large_ridge(data_folder, name, classes):
    """Real images are no Gaussian features: at ridge 30 the source's 3 %, beside 3 standard errors of 30 sets."""
    file = data_folder / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"no {name}.npz")
    with np.load(file) as arrays:
        labels = arrays["y_train"].reshape(-1)
        rows = np.flatnonzero(np.isin(labels, classes))[:1200]
        images, labels = torch.from_numpy(arrays["x_train"][rows]).double().flatten(1), labels[rows]
    x = torch.nn.functional.normalize(images) * images.shape[1] ** 0.5
    target = torch.from_numpy(np.where(labels == classes[0], 1.0, -1.0))[:, None]
    kernel = network_kernel(x.shape[1])(x)
    spectrum = sample_spectrum(kernel)
    power = spectrum.target(target).power
    for n in (64, 256, 600):
        trials = kernel_trials(kernel, target, n, trials=30, generator=torch.Generator().manual_seed(n), ridge=30.0)
        found = finite_population(spectrum.eigenvalues, power, n, 30.0)
        for field in ("test_mse", "train_mse", "population_mse"):
            measured, error = trials.mean(field)
            assert (measured - getattr(found, field)).abs() <= 0.03 * measured + 3 * error, (n, field)


def test_trials_are_ridge_regressions():
    """One trial against a plain solve, and the conservation law in the complete basis of parities."""
    x = corners(5)
    kernel, basis = network_kernel(5)(x), parities(5)
    rng, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for ridge, noise in ((0.0, 0.0), (0.7, 0.2)):
        found = kernel_trials(kernel, basis, 9, trials=4, generator=rng, ridge=ridge, noise=noise, basis=basis)
        drawn = torch.rand(4, 32, generator=again, dtype=torch.float64).argsort(1)[:, :9]
        labels = basis[drawn] + noise**0.5 * torch.randn(4, 9, 32, generator=again, dtype=torch.float64)
        assert torch.equal(found.drawn, drawn)
        for trial in range(4):
            rows = drawn[trial]
            gram = kernel[rows][:, rows] + ridge * torch.eye(9, dtype=torch.float64)
            inverse = torch.linalg.inv(gram)
            predicted = kernel[:, rows] @ inverse @ labels[trial]
            errors = (predicted - basis) ** 2
            outside = torch.ones(32, dtype=torch.bool).scatter(0, rows, False)
            same = torch.testing.assert_close
            same(found.population_mse[trial], errors.mean(0))
            same(found.test_mse[trial], errors[outside].mean(0))
            same(found.train_mse[trial], errors[rows].mean(0))
            same(found.label_train_mse[trial], ((predicted[rows] - labels[trial]) ** 2).mean(0))
            same(found.coefficients[trial], basis.T @ predicted / 32)
            budget = torch.trace(kernel[rows][:, rows] @ inverse)
            same(found.total_learnability[trial], budget)
            if noise == 0:  # exactly n without ridge, for any kernel and any training set
                assert abs(float(found.learnability[trial].sum()) - 9) < 1e-12 * 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0}, "n must be above 0"),
        ({"n": 5}, "n must be at most the number of points of the domain, 4"),
        ({"ridge": -1}, "ridge must be at least 0"),
        ({"target_power": [1.0]}, "target_power must be"),
    ],
)
def test_bad_input_of_the_finite_population(arguments, sentence):
    good = {"eigenvalues": [1.0, 0.5], "target_power": [1.0, 1.0], "n": 1, "multiplicities": [1, 3]}
    with pytest.raises(ValueError, match=sentence):
        finite_population(**{**good, **arguments})


@pytest.mark.parametrize("n", [0, 9])
def test_bad_sizes_of_trials(n):
    with pytest.raises(ValueError, match="trials and n must be at least 1, and n at most M = 8"):
        kernel_trials(torch.eye(8).double(), torch.ones(8, 1).double(), n, trials=2, generator=torch.Generator())


def test_one_trial_has_no_standard_error():
    one = kernel_trials(torch.eye(8).double(), torch.ones(8, 1).double(), 3, trials=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="at least 2 trials"):
        one.mean("test_mse")
