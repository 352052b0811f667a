"""Derivatives of every prediction against finite differences, and the one the theory names: E_0 = n dkappa / dridge."""

import pytest
import torch

from bench.theory.eigenlearning import eigenlearning
from bench.theory.finite_population import finite_population
from bench.theory.random_features import random_features

LAM = torch.tensor([1.0, 0.4, 0.15, 0.03, 0.002], dtype=torch.float64)
V2 = torch.tensor([0.3, 0.1, 0.4, 0.2, 0.5], dtype=torch.float64)
COUNTS = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0], dtype=torch.float64)
FIELDS = ("kappa", "test_mse", "train_mse", "overfitting_coefficient", "learnability")


def leaves(*values):
    return tuple(torch.as_tensor(value, dtype=torch.float64).clone().requires_grad_() for value in values)


GRID = [(n, ridge) for n in (0.7, 4.0, 13.9, 40.0) for ridge in (0.0, 1e-3, 2.0) if ridge or n < 15]


@pytest.mark.parametrize(("n", "ridge"), GRID)  # 4 fills the first two levels
def test_first_and_second_derivatives_of_eigenlearning(n, ridge):
    def predict(lam, v2, n, noise, counts, ridge):
        found = eigenlearning(lam, v2, n, ridge, noise, counts)
        return tuple(getattr(found, field) for field in (*FIELDS, "bias", "variance"))

    inputs = leaves(LAM, V2, n, 0.1, COUNTS)
    # gradcheck's central differences in float64: step 1e-6, error 1e-10 relative to third derivatives of order 1e3.
    if ridge:
        inputs = (*inputs, *leaves(ridge))
        step = 1e-4 * min(1.0, ridge)
        assert torch.autograd.gradcheck(predict, inputs, eps=step, atol=1e-4, rtol=1e-4)
        assert torch.autograd.gradgradcheck(predict, inputs, eps=step, atol=1e-3, rtol=1e-3)
    else:
        assert torch.autograd.gradcheck(lambda *a: predict(*a, 0.0), inputs, eps=1e-5, atol=1e-5, rtol=1e-4)
        assert torch.autograd.gradgradcheck(lambda *a: predict(*a, 0.0), inputs, eps=1e-5, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
def test_the_overfitting_coefficient_is_n_dkappa_dridge(ridge):
    n = torch.tensor([0.5, 4.0, 14.0], dtype=torch.float64)
    delta = torch.full_like(n, ridge).requires_grad_()
    found = eigenlearning(LAM, V2, n, delta, multiplicities=COUNTS)
    (slope,) = torch.autograd.grad(found.kappa.sum(), delta)
    torch.testing.assert_close(n * slope, found.overfitting_coefficient.detach(), rtol=1e-12, atol=0)


def test_beyond_the_rank_the_derivatives_are_those_of_a_small_ridge():
    def grads(ridge):
        inputs = leaves(LAM, V2, 20.0, ridge, 0.1)
        found = eigenlearning(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], COUNTS)
        value = found.test_mse + found.train_mse + found.kappa + found.overfitting_coefficient
        return torch.autograd.grad(value, inputs)

    # They differ by ridge / lambda^2 with the smallest eigenvalue .002.
    for zero, small in zip(grads(0.0), grads(1e-12), strict=True):
        torch.testing.assert_close(zero, small, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(20.0, 30.0), (30.0, 20.0)])
def test_so_are_those_of_random_features(n, k):
    def grads(ridge):
        inputs = leaves(LAM, V2, n, k, ridge, 0.1)
        found = random_features(*inputs, COUNTS)
        value = found.test_mse + found.train_mse + found.kappa + found.overfitting_coefficient + found.feature_kappa
        return torch.autograd.grad(value, inputs)

    for zero, small in zip(grads(0.0), grads(1e-12), strict=True):
        torch.testing.assert_close(zero, small, rtol=1e-5, atol=1e-5)


def test_random_features_and_finite_population():
    def features(lam, v2, n, k, ridge, noise):
        found = random_features(lam, v2, n, k, ridge, noise, COUNTS)
        return tuple(getattr(found, field) for field in (*FIELDS, "feature_kappa"))

    for n, k in ((4.5, 9.0), (9.0, 4.5), (30.0, 8.0)):
        assert torch.autograd.gradcheck(features, leaves(LAM, V2, n, k, 0.2, 0.1), eps=1e-5, atol=1e-4, rtol=1e-4)

    def population(lam, v2, n, ridge, noise):
        found = finite_population(lam, v2, n, ridge, noise, COUNTS)
        return found.kappa, found.population_mse, found.train_mse, found.label_train_mse, found.test_mse

    for n in (2.0, 10.0):
        assert torch.autograd.gradcheck(population, leaves(LAM, V2, n, 0.2, 0.1), eps=1e-5, atol=1e-4, rtol=1e-4)
