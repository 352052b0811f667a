"""The two bases: their exact kernels against quadrature and closed forms, at any variances."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from design_references import quadrature, sphere
from scipy.special import owens_t as scipy_owens_t
from scipy.stats import multivariate_normal
from torch import nn

from models.activations import Erf
from models.design import ErfUnits, Hermite, PiecewiseLinear, hermite_activation
from models.design.hermite import scaled_coefficients
from models.design.normal import owens_t, truncated
from models.layers import Linear
from models.limits import infinite_width
from tests.one_device import OneDevice

KINKED = PiecewiseLinear([0.5, -0.3, 0.0], [1.0, 0.4, -0.7], 0.3, 0.2, radius=1.3)
SMOOTH = Hermite([0.3, 0.6, -0.4, 0.2, 0.1], radius=1.3)
UNITS = ErfUnits([0.8, -0.5], [0.6, 2.5], [0.3, -0.4], 0.3, 0.2, radius=1.3)


def limit_of(activation: nn.Module, x: torch.Tensor, y: torch.Tensor | None = None, b_std: float | None = None):
    return infinite_width(nn.Sequential(Linear(x.shape[1], 4, 1.0, b_std), activation, Linear(4, 1)))(x, y)


def test_owens_t_and_orthant_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    h = 2 * torch.randn(2000, dtype=torch.float64, generator=generator)
    a = torch.randn(2000, dtype=torch.float64, generator=generator).pow(3) * 5
    expected = scipy_owens_t(h.numpy(), a.numpy())
    assert np.abs(owens_t(h, a, a * h).numpy() - expected).max() < 1e-15
    for u, v, theta in [(0, 0, 0.3), (0, -0.7, 1.0), (1, 0, 3.0), (1, -0.5, 2.0), (-1, -1.2, 0.05), (0.3, 0.3, 1e-3)]:
        at = [torch.tensor(t, dtype=torch.float64) for t in (u, v, theta)]
        rho = math.cos(theta)
        reference = multivariate_normal.cdf([-u, -v], cov=[[1, rho], [rho, 1]])
        assert truncated(*at).both.item() == pytest.approx(reference, abs=1e-13)


def kinked(z: float) -> float:
    z = z / 1.3
    return max(z - 0.5, 0) + 0.4 * max(z + 0.3, 0) - 0.7 * max(z, 0) + 0.3 * z + 0.2


def kinked_slope(z: float) -> float:
    z = z / 1.3
    return ((z > 0.5) + 0.4 * (z > -0.3) - 0.7 * (z > 0) + 0.3) / 1.3


POWERS = np.polynomial.hermite_e.herme2poly(
    [b / math.sqrt(math.factorial(k)) for k, b in enumerate(SMOOTH.coefficients)]
)


def smooth(z: float) -> float:
    return sum(a * (z / 1.3) ** k for k, a in enumerate(POWERS.tolist()))


def smooth_slope(z: float) -> float:
    return sum(k * a * (z / 1.3) ** (k - 1) / 1.3 for k, a in enumerate(POWERS.tolist()) if k)


def units(z: float) -> float:
    z, two = z / 1.3, 2**0.5
    return 0.8 * math.erf((0.6 * z + 0.3) / two) - 0.5 * math.erf((2.5 * z - 0.4) / two) + 0.3 * z + 0.2


def units_slope(z: float) -> float:
    z = z / 1.3
    bells = [a * w * math.exp(-((w * z + b) ** 2) / 2) for a, w, b in ((0.8, 0.6, 0.3), (-0.5, 2.5, -0.4))]
    return ((2 / math.pi) ** 0.5 * sum(bells) + 0.3) / 1.3


@pytest.mark.parametrize(
    ("activation", "phi", "slope"),
    [(KINKED, kinked, kinked_slope), (SMOOTH, smooth, smooth_slope), (UNITS, units, units_slope)],
)
def test_kernels_by_quadrature_at_unequal_variances(activation, phi, slope) -> None:
    x = torch.tensor([[1.0, 0.4]], dtype=torch.float64)
    y = torch.tensor([[-0.6, 1.9]], dtype=torch.float64)
    q1, q2, k = ((a * b).sum().item() / 2 + 0.3**2 for a, b in ((x, x), (y, y), (x, y)))
    cuts = [t * 1.3 for t in activation.breaks()] or [0.0]
    found = limit_of(activation, x, y, b_std=0.3)
    nngp = quadrature(phi, [q1, q2, k], cuts)
    assert found.nngp.item() == pytest.approx(nngp, abs=1e-7)
    assert found.ntk.item() == pytest.approx(nngp + quadrature(slope, [q1, q2, k], cuts) * k, abs=1e-7)


def test_one_unit_is_the_kernel_known_for_it() -> None:
    x, y = sphere(6, 5), sphere(7, 5, seed=1) * 1.7
    own_and_reference = (
        (PiecewiseLinear([0.0], [1.0], 0, 0), nn.ReLU()),
        (Hermite([0.0, 1.0]), nn.Identity()),
        (ErfUnits([1.0], [2**0.5], [0.0], 0, 0), Erf()),
    )
    for own, reference in own_and_reference:
        for inputs in ((x, y), (x, None)):
            found, expected = limit_of(own, *inputs), limit_of(reference, *inputs)
            torch.testing.assert_close(found.nngp, expected.nngp, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(found.ntk, expected.ntk, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("radius", [1.0, 0.7])
def test_coefficients_are_realised(kind, radius) -> None:
    a = [0.3, 0.2, 0.0, 0.4, 0.1, 0.0, 0.05]
    x, y = sphere(6, 5, radius), sphere(4, 5, radius, seed=1)
    c = x @ y.T / (5 * radius**2)
    expected = sum(a_k * c**k for k, a_k in enumerate(a))
    found = getattr(limit_of(hermite_activation(a, kind, radius), x, y), kind)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_kernels_of_sines_in_closed_form() -> None:
    # NNGP of sqrt(2) sin(z + pi / 4) is exp(c - 1); its Hermite coefficients are e^-1/2 (+ + - -) / sqrt(k!).
    a = [math.exp(-1) / math.factorial(k) for k in range(30)]
    activation = hermite_activation(a, "nngp")
    z = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(activation(z), 2**0.5 * torch.sin(z + math.pi / 4), rtol=0, atol=1e-10)
    found = limit_of(activation, sphere(5, 3), sphere(6, 3, seed=1)).nngp
    c = sphere(5, 3) @ sphere(6, 3, seed=1).T / 3
    torch.testing.assert_close(found, torch.exp(c - 1), rtol=1e-12, atol=0)


def test_scaled_coefficients_reproduce_the_function() -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for s in (0.0, 0.3, 1.0, 2.5):
        scaled = [b.item() for b in scaled_coefficients(SMOOTH.coefficients, torch.tensor(s, dtype=torch.float64))]
        plain = Hermite(SMOOTH.coefficients)
        torch.testing.assert_close(Hermite(scaled)(z), plain(s * z), rtol=1e-12, atol=1e-12)


def test_zero_inputs_and_equal_inputs() -> None:
    x = sphere(4, 3)
    x[1] = 0
    x[3] = x[2]
    for activation in (KINKED, SMOOTH, UNITS):
        found = limit_of(activation, x)
        at_zero = activation(torch.zeros(1, dtype=torch.float64)).item() ** 2
        assert found.nngp[1, 1].item() == pytest.approx(at_zero, abs=1e-12)
        assert found.ntk[2, 3].item() == pytest.approx(found.ntk[2, 2].item(), rel=1e-6)
        assert torch.linalg.eigvalsh(found.ntk)[0] > -1e-9


@pytest.mark.parametrize("activation", [KINKED, SMOOTH, UNITS])
def test_device_of_the_inputs(activation) -> None:
    x = torch.empty(5, 4, dtype=torch.float64, device="meta")
    net = nn.Sequential(Linear(4, 3), activation, Linear(3, 1)).to("meta")
    with OneDevice():
        assert infinite_width(net)(x, x[:3]).ntk.device.type == "meta"
        assert net(x).device.type == "meta"


def test_single_precision() -> None:
    x, y = sphere(5, 4), sphere(6, 4, seed=1)
    for activation in (KINKED, SMOOTH, UNITS):
        single = limit_of(activation, x.float(), y.float())
        assert single.ntk.dtype == torch.float32
        torch.testing.assert_close(single.ntk.double(), limit_of(activation, x, y).ntk, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [KINKED, SMOOTH, UNITS])
def test_scripted_and_saved(activation) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(activation), file)
        file.seek(0)
        again = torch.jit.load(file)
    for shape in ((3,), (2, 3, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(again(x), activation(x))
    program = torch.export.export(activation, (torch.randn(3, 4),))
    torch.testing.assert_close(program.module()(torch.ones(3, 4)), activation(torch.ones(3, 4)))


@pytest.mark.parametrize("activation", [KINKED, SMOOTH, UNITS])
def test_onnx(activation) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(activation.eval(), (x,))
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, activation(x).numpy(), rtol=1e-5, atol=1e-6)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"negative Taylor coefficient -0\.5 at order 2"):
        hermite_activation([1.0, 0.0, -0.5])
    with pytest.raises(ValueError, match=r"Unknown kind 'nkt'\. Did you mean 'ntk'"):
        hermite_activation([1.0], "nkt")
    with pytest.raises(ValueError, match="radius must be a positive number"):
        Hermite([1.0], radius=0.0)
    with pytest.raises(ValueError, match="one length"):
        PiecewiseLinear([0.0], [1.0, 2.0], 0.0, 0.0)
    with pytest.raises(ValueError, match="one length"):
        ErfUnits([0.0], [1.0, 2.0], [0.0], 0.0, 0.0)


def test_after_another_activation_it_is_one_activation_with_it() -> None:
    """Against 10^6 Gaussian units: the mean square of the products over the number of units is the error's square."""
    x = sphere(2, 3).double()
    limit = infinite_width(nn.Sequential(Linear(3, 4), nn.ReLU(), SMOOTH, Linear(4, 1)))(x)
    units = torch.randn(1_000_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3**0.5
    h = SMOOTH.double()(torch.relu(units @ x.T))
    products = h[:, :1] * h[:, 1:]
    error = float(products.std()) / 1e3
    assert abs(float(limit.nngp[0, 1] - products.mean())) < 4 * error
