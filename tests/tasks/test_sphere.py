"""Harmonics and Fourier modes against scipy, quadrature and the kernels whose eigenfunctions they are."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch

from tasks.sphere import circle_modes, harmonic, harmonics, legendre, single_index


def quadrature(d: int, nodes: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Nodes t = x1 / |x| and weights (of sum 1) of the uniform measure on the sphere in d dimensions."""
    t, w = scipy.special.roots_jacobi(nodes, (d - 3) / 2, (d - 3) / 2)
    return t, w / w.sum()


def zonal(t: np.ndarray, d: int, degree: int) -> np.ndarray:
    return math.sqrt(harmonics(d, degree)) * legendre(torch.from_numpy(t), d, degree).numpy()


@pytest.mark.parametrize("d", [3, 8, 16])
def test_inputs_are_uniform_on_the_sphere(d: int) -> None:
    n = 2000
    task = single_index(d, n_train=n, n_test=1)
    x = task.x_train.double()
    torch.testing.assert_close(x.norm(dim=1), torch.full((n,), math.sqrt(d), dtype=torch.float64), rtol=1e-6, atol=0)
    assert (x.mean(0).abs() < 5 / math.sqrt(n)).all()
    assert ((x.T @ x / n - torch.eye(d)).abs() < 5 * math.sqrt(2 / n)).all()
    assert task.domain == "sphere"


def test_single_index_is_the_theory_s() -> None:
    task = single_index()
    assert (task.name, task.n_train, task.n_test, task.x_shape, task.outputs) == ("single_index", 256, 512, (16,), 1)
    for s, y in zip(task.x_train[:, 0].tolist(), task.y_train[:, 0].tolist(), strict=True):
        assert y == pytest.approx(s / math.sqrt(2) + (s**2 - 1) / 2, abs=1e-5)


@pytest.mark.parametrize("d", [3, 16])
def test_single_index_has_the_moments_it_says(d: int) -> None:
    t, w = quadrature(d)
    s = math.sqrt(d) * t
    y = s / math.sqrt(2) + (s**2 - 1) / 2
    assert w @ y == pytest.approx(0, abs=1e-12)
    assert w @ y**2 == pytest.approx(1 / 2 + (3 * d / (d + 2) - 1) / 4)
    n = 20_000
    drawn = single_index(d, n_train=n, n_test=1).y_train.square()
    assert float(drawn.mean()) == pytest.approx(w @ y**2, abs=5 * float(drawn.std()) / math.sqrt(n))


@pytest.mark.parametrize("d", [3, 4, 8, 20])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 7, 20])
def test_legendre_is_scipy_s_gegenbauer(d: int, degree: int) -> None:
    t = np.linspace(-1, 1, 101)
    alpha = (d - 2) / 2
    wanted = scipy.special.eval_gegenbauer(degree, alpha, t) / scipy.special.eval_gegenbauer(degree, alpha, 1.0)
    np.testing.assert_allclose(legendre(torch.from_numpy(t), d, degree).numpy(), wanted, atol=1e-12)


def test_legendre_on_the_circle_is_chebyshev_s() -> None:
    angle = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    torch.testing.assert_close(legendre(angle.cos(), 2, 5), (5 * angle).cos())


@pytest.mark.parametrize("d", [2, 3, 4, 8])
def test_harmonics_are_counted(d: int) -> None:
    """Homogeneous polynomials of degree k are the harmonic ones of degrees k, k - 2, ..."""
    for k in range(10):
        assert sum(harmonics(d, j) for j in range(k, -1, -2)) == math.comb(k + d - 1, d - 1)


@pytest.mark.parametrize("d", [3, 8, 16])
def test_zonal_harmonics_are_orthonormal(d: int) -> None:
    t, w = quadrature(d)
    y = np.stack([zonal(t, d, k) for k in range(10)])
    np.testing.assert_allclose((y * w) @ y.T, np.eye(10), atol=1e-10)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonic_has_unit_mean_square(degree: int) -> None:
    n = 20_000
    square = harmonic(8, degree, n_train=n, n_test=1).y_train.square()
    assert float(square.mean()) == pytest.approx(1, abs=5 * float(square.std()) / math.sqrt(n) + 1e-6)


def test_harmonics_drawn_are_orthogonal() -> None:
    n = 20_000
    y = torch.cat([harmonic(8, k, n_train=n, n_test=1).y_train.double() for k in range(4)], 1)  # the same inputs
    for i in range(4):
        for j in range(i):
            product = y[:, i] * y[:, j]
            assert abs(product.mean()) < 5 * product.std() / math.sqrt(n)


@pytest.mark.parametrize("degree", [0, 1, 2, 4])
def test_harmonic_is_an_eigenfunction_of_a_kernel(degree: int) -> None:
    """Integrate exp(x.x'/3) Y(x') over the sphere in three dimensions by a product rule, for the inputs x of a task."""
    task = harmonic(3, degree, n_train=40, n_test=1)
    z, w = np.polynomial.legendre.leggauss(40)
    phi = 2 * np.pi * np.arange(80) / 80
    radius = np.sqrt(1 - z**2)[:, None]
    grid = np.stack([np.broadcast_to(z[:, None], (40, 80)), radius * np.cos(phi), radius * np.sin(phi)], -1).reshape(
        -1, 3
    )
    weights = np.repeat(w / 2, 80) / 80
    kernel = np.exp(task.x_train.double().numpy() @ (math.sqrt(3) * grid).T / 3)
    alpha = 0.5
    y_grid = math.sqrt(2 * degree + 1) * scipy.special.eval_gegenbauer(degree, alpha, grid[:, 0])
    image = kernel @ (weights * y_grid)
    eigenvalue = scipy.special.spherical_in(degree, 1.0)  # of exp(t) in three dimensions
    np.testing.assert_allclose(image, eigenvalue * task.y_train[:, 0].numpy(), atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 2, 5])
@pytest.mark.parametrize("points", [None, 2000])
def test_circle_modes_by_hand(k: int, points: int | None) -> None:
    task = circle_modes(k, points=points, n_train=200, n_test=1000)
    assert (task.name, task.domain, task.x_shape) == (f"circle{k}", "circle", (2,))
    for (a, b), y in zip(task.x_train.tolist(), task.y_train[:, 0].tolist(), strict=True):
        assert math.hypot(a, b) == pytest.approx(math.sqrt(2), abs=1e-6)
        wanted = 1 if k == 0 else math.sqrt(2) * math.cos(k * math.atan2(b, a))
        assert y == pytest.approx(wanted, abs=1e-5)


def test_circle_angles_are_uniform() -> None:
    x = circle_modes(1, n_train=4000, n_test=1).x_train.double()
    angle = torch.atan2(x[:, 1], x[:, 0])
    for k in range(1, 6):
        assert abs((k * angle).cos().mean()) < 5 / math.sqrt(2 * 4000)
        assert abs((k * angle).sin().mean()) < 5 / math.sqrt(2 * 4000)


@pytest.mark.parametrize("points", [9, 10, 64])
def test_discrete_circle_is_drawn_whole_and_modes_are_eigenvectors(points: int) -> None:
    for k in range(points // 2 + 1):
        task = circle_modes(k, points=points, n_train=4, n_test=points - 4)
        x, y = torch.cat([task.x_train, task.x_test]).double(), torch.cat([task.y_train, task.y_test]).double()
        turns = (torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) * points).round().long() % points
        assert sorted(turns.tolist()) == list(range(points))  # each point once: disjoint, without replacement
        assert float(y.square().mean()) == pytest.approx(1, abs=1e-5)
        kernel = (x @ x.T / 2).exp() / points
        torch.testing.assert_close(kernel @ y, float((y.T @ kernel @ y) / points) * y, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (single_index, {"d": 2}, "d of the sphere must be a whole number of at least 3, got 2."),
        (harmonic, {"d": 2}, "d of the sphere must be a whole number of at least 3, got 2."),
        (harmonic, {"degree": -1}, "degree of the harmonic must be a whole number of at least 0, got -1."),
        (circle_modes, {"k": -1}, "k of the circle must be a whole number of at least 0, got -1."),
        (circle_modes, {"points": 1}, "points of the circle must be a whole number of at least 2, got 1."),
        (
            circle_modes,
            {"points": 600, "k": 301},
            "k of the circle of 600 points must be a whole number from 0 to 300,",
        ),
        (
            circle_modes,
            {"points": 543},
            "n_train + n_test = 32 + 512 must be at most the 543 points of the circle: they",
        ),
    ],
)
def test_refuses(make: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        make(**arguments)
