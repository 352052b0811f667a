"""Dual maps of activations by quadrature: against scipy, closed forms, and their own stated error."""

import math

import numpy as np
import pytest
import torch
from limit_references import arc_cosine, expectation
from scipy import special
from torch import nn

from models.activations import Cos, Erf, Sin, Square, activation
from models.layers import Linear
from models.limits import NoInfiniteWidthLimit, elementwise, infinite_width
from models.limits.quadrature import diagonal_maps, dual_table

TANH_SLOPE = lambda z: 1 / math.cosh(z) ** 2  # noqa: E731
SCALAR = {
    "tanh": (math.tanh, TANH_SLOPE),
    "gelu": (
        lambda z: z * special.ndtr(z),
        lambda z: special.ndtr(z) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    ),
    "sin": (math.sin, math.cos),
    "silu": (lambda z: z * special.expit(z), lambda z: special.expit(z) * (1 + z * (1 - special.expit(z)))),
    "softplus": (lambda z: np.logaddexp(0, z), special.expit),
}
Q = torch.tensor([0.3, 1.0, 2.5, 4.0], dtype=torch.float64)


def duals(module: nn.Module, q1: torch.Tensor, q2: torch.Tensor, cosine: torch.Tensor) -> tuple:
    """Both dual maps [r, c] through a network: one hidden layer on inputs of two features at the given angles."""
    angle = torch.arccos(cosine)
    x1 = math.sqrt(2) * q1.sqrt()[:, None] * torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    x2 = math.sqrt(2) * q2.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    limit = infinite_width(nn.Sequential(Linear(2, 3), module, Linear(3, 1)))(x1, x2)
    k = x1 @ x2.T / 2
    return limit.nngp, (limit.ntk - limit.nngp) / k, limit.error


@pytest.mark.parametrize("name", SCALAR)
def test_smooth_activations_against_scipy(name) -> None:
    f, slope = SCALAR[name]
    cosine = torch.tensor([0.5, -0.9], dtype=torch.float64)
    q1, q2 = torch.tensor([0.7, 2.0], dtype=torch.float64), torch.tensor([2.0, 1.3], dtype=torch.float64)
    value, derivative, error = duals(activation(name), q1, q2, cosine)
    assert error < 1e-9
    for i, a in enumerate(q1.tolist()):
        for j, (b, c) in enumerate(zip(q2.tolist(), cosine.tolist(), strict=True)):
            k = c * math.sqrt(a * b)
            assert value[i, j].item() == pytest.approx(expectation(f, f, a, b, k), abs=2e-8)
            assert derivative[i, j].item() == pytest.approx(expectation(slope, slope, a, b, k), abs=2e-8)


COSINES = torch.tensor([-0.999, -0.4, 0.3, 0.9, 0.9999, 1 - 1e-9], dtype=torch.float64)
NORMS = torch.tensor([0.2, 3.0, 1.0, 1.0, 2.0, 0.05], dtype=torch.float64)


def _covariances() -> tuple[torch.Tensor, torch.Tensor]:
    k = COSINES * torch.outer(Q.sqrt(), NORMS.sqrt())
    return k, (Q[:, None] + NORMS[None]) / 2


@pytest.mark.parametrize(
    ("module", "value", "slope"),
    [
        (Sin(), lambda k, m: torch.exp(-m) * torch.sinh(k), lambda k, m: torch.exp(-m) * torch.cosh(k)),
        (Cos(), lambda k, m: torch.exp(-m) * torch.cosh(k), lambda k, m: torch.exp(-m) * torch.sinh(k)),
        (Square(), lambda k, m: torch.outer(Q, NORMS) + 2 * k * k, lambda k, m: 4 * k),
    ],
    ids=lambda value: type(value).__name__,
)
def test_against_analytic_duals(module, value, slope) -> None:
    found_value, found_slope, error = duals(module, Q, NORMS, COSINES)
    k, m = _covariances()
    assert error < 1e-9
    for found, expected in ((found_value, value(k, m)), (found_slope, slope(k, m))):
        # theta = 1e-4.5 is known to about 1e-12 from a cosine in float64
        assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


@elementwise
class HandRelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp_min(0)


@elementwise
class HandLeaky(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, 0.2 * x)


@elementwise
class HandAbs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() + (-x).relu()


@elementwise
class HandErf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


@pytest.mark.parametrize(
    ("mine", "closed"),
    [
        (HandRelu(), nn.ReLU()),
        (HandLeaky(), nn.LeakyReLU(0.2)),
        (HandAbs(), activation("abs")),
        (HandErf(), Erf()),
    ],
)
def test_quadrature_equals_the_closed_forms_kinks_included(mine, closed) -> None:
    x1, x2 = (torch.randn(n, 6, dtype=torch.float64) * torch.rand(n, 1).double().add(0.5) for n in (30, 20))
    layers = [Linear(6, 4, 1.4, 0.3), Linear(4, 4, 1.4, 0.3), Linear(4, 1)]
    for one, two in ((x1, x2), (x1, None)):
        quadrature, exact = (
            infinite_width(nn.Sequential(layers[0], phi, layers[1], phi, layers[2]))(one, two) for phi in (mine, closed)
        )
        assert 0 < quadrature.error < 1e-9
        for found, expected in zip(quadrature[:2], exact[:2], strict=True):
            assert ((found - expected).abs().max() / expected.abs().max()) < 2e-9


def test_step_and_sign_against_arc_cosine() -> None:
    k, _ = _covariances()
    _, step = arc_cosine(Q.numpy(), k.numpy(), NORMS.numpy())
    value, slope, _ = duals(activation("step"), Q, NORMS, COSINES)
    np.testing.assert_allclose(value.numpy(), step, atol=1e-9)
    assert (slope.abs() < 1e-9).all()
    value, _, _ = duals(activation("sign"), Q, NORMS, COSINES)
    np.testing.assert_allclose(value.numpy(), 4 * step - 1, atol=1e-9)


@pytest.mark.parametrize("name", ["tanh", "gelu", "elu", "sigmoid", "mish", "softsign"])
def test_stated_error_bounds_the_actual_one(name) -> None:
    phi = activation(name)
    table = dual_table(phi, 0.4, 2.0, torch.device("cpu"))
    s = torch.linspace(0.4, 2.0, 7, dtype=torch.float64)
    value, slope = (t[0] for t in table(s[None], s[None], torch.zeros(1, 7, 7, dtype=torch.float64)))
    exact_value, exact_slope, error = diagonal_maps(phi, s)
    assert table.error < 1e-9
    assert error < 1e-9
    # At angle 0 and equal deviations the table must agree with the one-dimensional quadrature.
    for found, exact in ((value.diagonal(), exact_value), (slope.diagonal(), exact_slope)):
        assert (found - exact).abs().max() < 10 * max(table.error, 1e-13) * exact.abs().max()


def test_equal_norms_need_one_deviation_only() -> None:
    table = dual_table(torch.tanh, 1.5, 1.5 * (1 + 1e-15), torch.device("cpu"))
    assert table.maps[0].shape[:2] == (1, 1)
    assert table.maps[0].shape[2] < 40  # degree 28 suffices for 1e-12 at unit variance


def test_wide_range_of_norms() -> None:
    q = torch.tensor([1e-6, 0.01, 1.0, 30.0], dtype=torch.float64)
    cosine = torch.tensor([0.5, -0.5, 0.9, 0.99], dtype=torch.float64)
    value, slope, error = duals(Sin(), q, q, cosine)
    k, m = cosine * torch.outer(q.sqrt(), q.sqrt()), (q[:, None] + q[None]) / 2
    assert error < 1e-8
    torch.testing.assert_close(value, (torch.exp(k - m) - torch.exp(-k - m)) / 2, rtol=0, atol=1e-9)
    relative = (slope - (torch.exp(k - m) + torch.exp(-k - m)) / 2) * k  # what enters the NTK
    assert relative.abs().max() < 1e-8


def test_activation_that_is_not_smooth_is_refused() -> None:
    @elementwise
    class Staircase(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.floor(3 * x + 0.5)

    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(NoInfiniteWidthLimit, match=r"'1' \(Staircase\): the quadrature reaches only a relative error"):
        infinite_width(nn.Sequential(Linear(3, 4), Staircase(), Linear(4, 1)))(x)
