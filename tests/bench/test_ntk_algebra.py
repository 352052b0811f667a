"""Solves and spectra against numpy and known spectra; the residuals they report against the plain definition."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.ntk import as_operator, empirical_ntk
from bench.ntk.algebra import as_matrix, conjugate_gradients, largest_eigenvalues, solve, spectrum
from models.mlp import mlp


def kernel(eigenvalues: list[float] | Tensor, seed: int = 0) -> Tensor:
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)).Q
    K = (Q * values) @ Q.T
    return (K + K.T) / 2


def targets(n: int, b: int = 3) -> Tensor:
    return torch.randn(n, b, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


SPD = torch.logspace(-4, 1, 60)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_solve_is_the_solution(ridge):
    K, y = kernel(SPD), targets(60)
    expected = np.linalg.solve(K.numpy() + ridge * np.eye(60), y.numpy())
    condition = (10 + ridge) / (1e-4 + ridge)
    for found in (solve(K, y, ridge), conjugate_gradients(K, y, ridge, tolerance=1e-10)):
        plain = ((K + ridge * torch.eye(60, dtype=K.dtype)) @ found.x - y).norm(dim=0) / y.norm(dim=0)
        assert found.residual == pytest.approx(float(plain.max()), rel=1e-2, abs=1e-13)
        assert found.residual < 2e-10
        # The error of x is at most the condition number times the residual, and n roundings for numpy's.
        bound = condition * (found.residual + 60 * 1e-16) * np.linalg.norm(expected, axis=0).max()
        assert np.abs(found.x.numpy() - expected).max() < bound
    assert solve(K, y).steps == 0


def test_a_singular_kernel_is_solved_where_it_is_not():
    values = torch.cat([torch.zeros(20), torch.linspace(1, 2, 20)])
    K = kernel(values)
    y = K @ targets(40)
    assert solve(K, y).residual < 1e-13
    assert float((solve(K, y).x - torch.linalg.pinv(K) @ y).abs().max()) < 1e-12


def test_no_kernel_beyond_rounding_is_an_error():
    y = targets(30)
    for least in (-1e-3, -1e-6):
        K = kernel(torch.cat([torch.tensor([least]), torch.linspace(0.5, 2, 29)]))
        for call in (lambda K=K: solve(K, y), lambda K=K: solve(K, y, ridge=0.1), lambda K=K: spectrum(K)):
            with pytest.raises(ValueError, match="not positive semidefinite"):
                call()
    rounding = kernel(torch.cat([torch.tensor([-1e-12]), torch.linspace(0.5, 2, 29)]))
    assert solve(rounding, y, ridge=0.1).residual < 1e-12
    assert float(spectrum(rounding).eigenvalues[0]) == pytest.approx(-1e-12, abs=1e-13)
    with pytest.raises(ValueError, match="curvature"):
        conjugate_gradients(kernel(torch.cat([torch.tensor([-0.5]), torch.linspace(0.5, 2, 29)])), y)


def test_a_spectrum_is_the_spectrum():
    found = spectrum(kernel(SPD))
    np.testing.assert_allclose(found.eigenvalues.numpy(), SPD.numpy(), rtol=0, atol=1e-13 * 10)
    assert found.residual < 1e-13
    K = kernel(SPD)
    assert float((K @ found.vectors - found.vectors * found.eigenvalues).norm(dim=0).max() / 10) < 1e-13


@pytest.mark.parametrize("k", [1, 5, 60])
def test_lanczos_finds_the_largest(k):
    K = kernel(SPD)
    found = largest_eigenvalues(K, k, tolerance=1e-10)
    # A symmetric residual of r l_max leaves an eigenvalue within r l_max.
    np.testing.assert_allclose(found.eigenvalues.numpy(), SPD[-k:].numpy(), rtol=0, atol=2e-10 * 10)
    plain = (K @ found.vectors - found.vectors * found.eigenvalues).norm(dim=0).max() / found.eigenvalues[-1]
    assert found.residual == pytest.approx(float(plain), rel=1e-3, abs=1e-14)
    assert float((found.vectors.T @ found.vectors - torch.eye(k)).abs().max()) < 1e-10


def test_lanczos_goes_through_invariant_subspaces():
    """Three distinct eigenvalues: the Krylov space of any start has three dimensions, the eigenspace of 2 has five."""
    values = [0.0] * 10 + [1.0] * 5 + [2.0] * 5
    found = largest_eigenvalues(kernel(values), 7)
    np.testing.assert_allclose(found.eigenvalues.numpy(), [1.0] * 2 + [2.0] * 5, atol=1e-8)
    assert math.isfinite(found.residual)
    assert float(largest_eigenvalues(torch.zeros(6, 6), 2).eigenvalues.abs().max()) < 1e-12


@pytest.mark.parametrize("k", [1, 3, 6, 64])
@pytest.mark.parametrize("values", [[1.0] * 64, [2.0] * 3 + [1.0] * 61, [1.0] * 32 + [0.0] * 32, [1.0] + [0.0] * 63])
def test_lanczos_finds_every_copy_of_an_eigenvalue(values, k):
    """Diagonal: products are exact, and what is left of a vector in an invariant subspace may be exactly 0."""
    found = largest_eigenvalues(torch.diag(torch.tensor(values)).double(), k)
    np.testing.assert_allclose(found.eigenvalues.numpy(), sorted(values)[-k:], atol=1e-12)
    assert float((found.vectors.T @ found.vectors - torch.eye(k)).abs().max()) < 1e-12


def test_a_network_without_its_kernel():
    """Solve and top of the spectrum by products with the network alone, against the dense kernel."""
    torch.manual_seed(0)
    net, x = mlp(6, 32, 2, 2, activation="tanh", b_std=0.3).double(), torch.randn(30, 6, dtype=torch.float64)
    operator, K = as_operator(net, x), empirical_ntk(net, x)
    matrix, y = as_matrix(K), targets(60, 2)
    assert matrix.shape == operator.shape
    ridge = 0.05 * float(matrix.diagonal().mean())
    direct = solve(K, y, ridge)
    iterated = conjugate_gradients(operator, y, ridge, tolerance=1e-9)
    assert 0 < iterated.steps < 120
    assert iterated.residual < 2e-9
    # |x - x'| <= |r| / ridge, and |y| <= |x| (l_max + ridge).
    condition = (float(spectrum(K).eigenvalues[-1]) + ridge) / ridge
    assert float((direct.x - iterated.x).norm(dim=0).max()) < 2e-9 * condition * float(direct.x.norm(dim=0).max())
    top = largest_eigenvalues(operator, 4)
    np.testing.assert_allclose(top.eigenvalues.numpy(), spectrum(K).eigenvalues[-4:].numpy(), rtol=1e-7)


def test_what_is_not_reached_is_an_error():
    K, y = kernel(torch.logspace(-9, 1, 60)), targets(60)
    with pytest.raises(ValueError, match="raise max_steps, the tolerance or the ridge"):
        conjugate_gradients(K, y, tolerance=1e-10, max_steps=16)
    with pytest.raises(ValueError, match="Lanczos reached a residual"):
        largest_eigenvalues(kernel(torch.linspace(1, 2, 60)), 5, tolerance=1e-12, max_steps=8)
    with pytest.raises(ValueError, match="k must be from 1 to 60"):
        largest_eigenvalues(K, 61)
    with pytest.raises(ValueError, match="max_steps must be at least k = 5"):
        largest_eigenvalues(K, 5, max_steps=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_tolerance_is_what_the_products_allow(dtype):
    """A float32 network's products hold an error of some 1e-7: 1e-8 could not be reached."""
    torch.manual_seed(0)
    net, x, y = mlp(8, 64, 2, 1, b_std=0.1).to(dtype), torch.randn(40, 8, dtype=dtype), targets(40, 2)
    reference = empirical_ntk(copy.deepcopy(net).double(), x.double(), outputs=0)
    operator, ridge, sqrt_eps = as_operator(net, x), 1.0, math.sqrt(torch.finfo(dtype).eps)
    exact = spectrum(reference)
    top = largest_eigenvalues(operator, k=10)
    assert top.residual <= 2 * sqrt_eps
    largest = float(exact.eigenvalues[-1])
    # The eigenvalues are within the residual and the error of the products.
    bound = (2 * sqrt_eps + 100 * torch.finfo(dtype).eps) * largest
    assert float((top.eigenvalues - exact.eigenvalues[-10:]).abs().max()) < bound
    solved, direct = conjugate_gradients(operator, y, ridge), solve(reference, y, ridge)
    assert solved.residual <= 2 * sqrt_eps
    bound = (2 * sqrt_eps + 100 * torch.finfo(dtype).eps * largest) / ridge * float(y.norm(dim=0).max())
    assert float((solved.x - direct.x).norm(dim=0).max()) < bound
    if dtype == torch.float32:
        with pytest.raises(ValueError, match=r"dtype=torch\.float64"):
            conjugate_gradients(operator, y, ridge, tolerance=1e-10)
        with pytest.raises(ValueError, match=r"dtype=torch\.float64"):
            largest_eigenvalues(operator, 10, tolerance=1e-10)


def test_targets_of_every_shape():
    """y [n c], [n c, b] and [n, c] are the same sides, and the solution has the shape of y."""
    n, c = 6, 3
    K = kernel(SPD[-n * c :]).view(n, c, n, c).transpose(1, 2)
    matrix, y = as_matrix(K), targets(n * c, 1)[:, 0]
    expected = torch.linalg.solve(matrix + torch.eye(n * c, dtype=K.dtype), y)
    shapes = [(n * c,), (n * c, 1), (n, c)]
    for one in (K, matrix):
        for shape in shapes:
            for found in (solve(one, y.view(shape), 1.0), conjugate_gradients(one, y.view(shape), 1.0, 1e-12)):
                assert found.x.shape == shape
                assert float((found.x.flatten() - expected).abs().max()) < 1e-10
    several = torch.stack([y, 2 * y], 1)
    assert float((solve(K, several, 1.0).x - torch.stack([expected, 2 * expected], 1)).abs().max()) < 1e-10
    singular = kernel(torch.cat([torch.zeros(3), torch.ones(3)]))
    assert solve(singular, singular[0]).x.shape == (6,)
    for wrong in (y[: n * c - 1], y.view(c, n), y.view(n, 1, c), y.view(n, c)[:, :2]):
        for call in (solve, conjugate_gradients):
            with pytest.raises(ValueError, match=r"y must be \[18\] or \[18, b\]"):
                call(K, wrong)
