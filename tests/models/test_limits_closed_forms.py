"""Dual maps in closed form: against analytic duals, a product rule, Cho & Saul, and quadrature."""

import math

import numpy as np
import pytest
import torch
from limit_references import COSINES, NORMS, Q, arc_cosine, covariances, duals, made, normal_density
from scipy import special
from torch import nn

from models.activations import Cos, Erf, Exp, Gaussian, Hermite, Power, RectifiedPower, Sin, Square, activation
from models.layers import Linear
from models.limits import infinite_width


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
    k, m = covariances()
    assert error < 1e-9
    for found, expected in ((found_value, value(k, m)), (found_slope, slope(k, m))):
        # theta = 1e-4.5 is known to about 1e-12 from a cosine in float64
        assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


def test_step_and_sign_against_arc_cosine() -> None:
    k, _ = covariances()
    _, step = arc_cosine(Q.numpy(), k.numpy(), NORMS.numpy())
    value, slope, _ = duals(activation("step"), Q, NORMS, COSINES)
    np.testing.assert_allclose(value.numpy(), step, atol=1e-9)
    assert (slope.abs() < 1e-9).all()
    value, _, _ = duals(activation("sign"), Q, NORMS, COSINES)
    np.testing.assert_allclose(value.numpy(), 4 * step - 1, atol=1e-9)


def _gauss_hermite(f, a: float, b: float, k: float) -> float:
    """E[f(u) f(v)] for a smooth f by a product rule, in other coordinates than the package's."""
    x, w = np.polynomial.hermite_e.hermegauss(150)
    w = w / math.sqrt(2 * math.pi)
    u = math.sqrt(a) * x[:, None]
    v = k / math.sqrt(a) * x[:, None] + math.sqrt(b - k * k / a) * x[None]
    return float(w @ (f(u) * f(v)) @ w)


SMOOTH = {
    "erf": (Erf(), special.erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z)),
    "gelu": (nn.GELU(), lambda z: z * special.ndtr(z), lambda z: special.ndtr(z) + z * normal_density(z)),
    "sin": (Sin(), np.sin, np.cos),
    "cos": (Cos(), np.cos, lambda z: -np.sin(z)),
    "exp": (Exp(), np.exp, np.exp),
    "gaussian": (Gaussian(), lambda z: np.exp(-z * z), lambda z: -2 * z * np.exp(-z * z)),
    "square": (Square(), lambda z: z**2, lambda z: 2 * z),
    "cube": (Power(3), lambda z: z**3, lambda z: 3 * z**2),
    "fourth": (Power(4), lambda z: z**4, lambda z: 4 * z**3),
    "hermite": (Hermite(3), lambda z: (z**3 - 3 * z) / math.sqrt(6), lambda z: (3 * z**2 - 3) / math.sqrt(6)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_closed_forms_against_a_product_rule(name) -> None:
    module, f, slope_of = SMOOTH[name]
    u, norms = (
        torch.tensor([0.3, 0.8, 1.1, 1.4], dtype=torch.float64),
        torch.tensor([0.2, 1.3, 1.0, 0.7, 0.9, 0.05], dtype=torch.float64),
    )
    value, slope, error = duals(module, u, norms, COSINES)
    assert error == 0.0
    for i, a in enumerate(u.tolist()):
        for j, (b, c) in enumerate(zip(norms.tolist(), COSINES.tolist(), strict=True)):
            k = c * math.sqrt(a * b)
            assert value[i, j].item() == pytest.approx(_gauss_hermite(f, a, b, k), rel=1e-9, abs=1e-12)
            assert slope[i, j].item() == pytest.approx(_gauss_hermite(slope_of, a, b, k), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_rectified_powers_against_cho_and_saul(n) -> None:
    k, _ = covariances()
    norms = torch.outer(Q, NORMS).sqrt()
    theta = torch.arccos((k / norms).clamp(-1, 1))
    s, c, left = theta.sin(), theta.cos(), math.pi - theta
    orders = [left, s + left * c, 3 * s * c + left * (1 + 2 * c**2), 15 * s - 11 * s**3 + left * (9 * c + 6 * c**3)]
    value, slope, _ = duals(RectifiedPower(n), Q, NORMS, COSINES)
    expected = norms**n * orders[n] / (2 * math.pi)
    expected_slope = n**2 * norms ** (n - 1) * orders[n - 1] / (2 * math.pi) if n else torch.zeros_like(slope)
    assert (value - expected).abs().max() < 1e-9 * expected.max()
    assert (slope - expected_slope).abs().max() <= 1e-9 * expected_slope.abs().max() + 1e-12


@pytest.mark.parametrize("written", [torch.exp, torch.sin, lambda z: z**3, lambda z: torch.pow(z, 2), torch.sign])
def test_closed_forms_of_functions(written) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Linear(2, 3), Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(written(self.first(x)))

    x = torch.tensor([[0.3, 0.5], [-1.0, 0.4], [0.1, 0.0]], dtype=torch.float64)
    limit = infinite_width(Net())(x)
    assert limit.error == 0.0
    by_quadrature = infinite_width(nn.Sequential(Linear(2, 3), made(written), Linear(3, 1)))(x)
    assert by_quadrature.error > 0.0
    torch.testing.assert_close(limit.nngp, by_quadrature.nngp, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(limit.ntk, by_quadrature.ntk, rtol=1e-8, atol=1e-9)
