"""Designs for names, functions, limits, coefficients and data: error, refusals, and what they are made of."""

import math
import time
import warnings

import numpy as np
import pytest
import torch
from design_references import arc_cosine_ntk, sphere
from torch import nn

from models.design import Design, ErfUnits, Hermite, PiecewiseLinear, design
from models.design.fit import kernel_on_sphere
from models.design.series import deep_taylor
from models.limits import infinite_width
from models.mlp import mlp


def on_circle(made: Design, theta: torch.Tensor) -> torch.Tensor:
    x = made.radius * 2**0.5 * torch.stack([torch.cos(theta), torch.sin(theta)], 1)
    return made.kernel(x[:1], x)[0]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_taylor_coefficients_of_deep_relu_networks(depth) -> None:
    # Cauchy's integral of the complex kernel: rounding grows as r^-40 = 8, aliases are r^2048 = 2e-46.
    r, count = 0.95, 2048
    circle = r * np.exp(2j * np.pi * np.arange(count) / count)
    for kind, values in zip(("nngp", "ntk"), arc_cosine_ntk(circle, depth), strict=True):
        expected = (np.fft.fft(values) / count).real[:41] / r ** np.arange(41)
        assert np.abs(np.array(deep_taylor("relu", depth, kind, 40, 2**0.5, 0.1)) - expected).max() < 1e-12


def test_taylor_coefficients_of_deep_erf_networks() -> None:
    # Against the limit itself, well inside the radius of convergence: 2^-61 is left.
    c = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)
    x = 2**0.5 * torch.stack([c, (1 - c * c).sqrt()], 1)
    one = torch.tensor([[2**0.5, 0.0]], dtype=torch.float64)
    for depth in (1, 3):
        limit = infinite_width(mlp(2, 1, depth, 1, "erf", b_std=0.1))(one, x)
        for kind in ("ntk", "nngp"):
            a = deep_taylor("erf", depth, kind, 60, 2**0.5, 0.1)
            total = sum(a_k * c**k for k, a_k in enumerate(a))
            torch.testing.assert_close(total, getattr(limit, kind)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_jacobian_of_the_fit(kind) -> None:
    point = torch.tensor([0.5, -0.3, 1.0, 0.4, 0.3, 0.2], dtype=torch.float64)
    theta = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    found = kernel_on_sphere(point, theta, kind).jacobian
    for i in range(6):
        step = 1e-6 * torch.eye(6, dtype=torch.float64)[i]
        ends = [kernel_on_sphere(point + s * step, theta, kind).value for s in (1, -1)]
        # Central differences: rounding 1e-16 / 1e-6, and 1e-12 of the third derivative.
        torch.testing.assert_close(found[:, i], (ends[0] - ends[1]) / 2e-6, rtol=0, atol=1e-8)


def reference(name: str, theta: np.ndarray) -> np.ndarray:
    c = np.cos(theta)
    if name.startswith("relu:"):
        return arc_cosine_ntk(c, int(name[5:]))[1]
    return {"exp": np.exp(c - 1), "rational": 1 / (2 - c)}[name]


FUNCTIONS = {"exp": lambda c: torch.exp(c - 1), "rational": lambda c: 1 / (2 - c)}
ALL = ["relu:2", "relu:3", "relu:4", "relu:5", "relu:6", "relu:7", "relu:8", "exp", "rational"]


def check_design(name: str) -> None:
    # The published mimic of relu:4 has .026, after two hours on a GPU; the goals: .005, 8 knots, 20 CPU seconds.
    begun = time.process_time()
    made = design(FUNCTIONS.get(name, name))
    assert time.process_time() - begun < 20
    theta = np.linspace(0, math.pi, 701)
    expected = reference(name, theta)
    error = np.abs(on_circle(made, torch.from_numpy(theta)).numpy() - expected).max() / expected[0]
    assert error <= 0.005
    assert len(made.activation.knots) <= 8
    assert made.certificate.error == pytest.approx(error, rel=0.02)  # two grids
    assert made.certificate.tail is None


@pytest.mark.slow
def test_piecewise_linear_design_of_a_function() -> None:
    check_design("rational")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_piecewise_linear_designs(name) -> None:
    check_design(name)


@pytest.mark.parametrize("name", ["erf:2", "erf:4"])
def test_one_error_function_stands_for_several_layers_of_them(name) -> None:
    """The goals for erf:4: .01 in 30 CPU seconds; seven kinks reach .0048 in 18."""
    begun = time.process_time()
    made = design(name)
    assert time.process_time() - begun < 10
    assert isinstance(made.activation, ErfUnits)
    theta = torch.linspace(0, math.pi, 701, dtype=torch.float64)
    x = 2**0.5 * torch.stack([torch.cos(theta), torch.sin(theta)], 1)
    expected = infinite_width(mlp(2, 1, int(name[4:]), 1, "erf", b_std=0.1))(x).ntk[0]
    error = float((on_circle(made, theta) - expected).abs().max() / expected[0])
    assert error <= 0.005
    assert made.certificate.error == pytest.approx(error, rel=0.02)  # two grids


@pytest.mark.slow
def test_erf_designs_of_more_units_and_of_kinks() -> None:
    assert design("erf:8").certificate.error <= 0.005
    assert design("erf:4", knots=2).certificate.error <= 0.002
    kinked = design("erf:4", basis="piecewise_linear")
    assert isinstance(kinked.activation, PiecewiseLinear)
    assert kinked.certificate.error <= 0.01


def test_truncation_is_exact() -> None:
    with pytest.warns(UserWarning, match="heavy-tailed"):
        made = design("relu:4", basis="hermite")
    k_one = made.certificate.at_one
    tail = 1 - sum(deep_taylor("relu", 4, "ntk", 6, 2**0.5, 0.1)) / k_one
    assert k_one == pytest.approx(arc_cosine_ntk(np.array([1.0]), 4)[1][0], rel=1e-7)
    assert made.certificate.tail == pytest.approx(tail, abs=1e-12)
    assert made.certificate.error == pytest.approx(tail, abs=1e-9)  # attained at c = 1
    assert made.certificate.worst == 1.0


def test_coefficients_and_sines() -> None:
    # NTK of A sin(w z): A^2 exp(-w^2) [sinh(w^2 c) + w^2 c cosh(w^2 c)]
    w2 = 1.5**2
    a = [math.exp(-w2) * (1 + k) * w2**k / math.factorial(k) * (k % 2) / 4 for k in range(36)]
    made = design(a)
    x, y = sphere(5, 4), sphere(6, 4, seed=1)
    c = x @ y.T / 4
    expected = math.exp(-w2) / 4 * (torch.sinh(w2 * c) + w2 * c * torch.cosh(w2 * c))
    torch.testing.assert_close(made.kernel(x, y), expected, rtol=0, atol=1e-12)
    assert made.certificate.error < 1e-12
    assert made.certificate.tail < 1e-15
    single = made.kernel(x.float(), y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_limit_as_target() -> None:
    net = nn.Sequential(nn.Flatten(1), *mlp(6, 3, 2, 1, "relu", b_std=0.2)[1:])
    radius = 1.4
    made = design(infinite_width(net), radius=radius, kind="nngp", knots=1)
    x = sphere(12, 6, radius)
    expected = infinite_width(net)(x).nngp
    error = (made.kernel(x) - expected).abs().max() / expected[0, 0]
    assert error <= made.certificate.error * 1.01 + 1e-9
    assert made.certificate.error < 0.02


def test_data_find_their_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (256, 10), generator=generator).float() * 2 - 1
    y = x[:, 0] * x[:, 1] * x[:, 2]
    with pytest.warns(UserWarning, match="heavy-tailed"):
        made = design((x, y))
    a = made.target.taylor(6)
    assert sum(a) == pytest.approx(1)
    assert a[3] > 0.9
    test = torch.randint(0, 2, (500, 10), generator=generator).double() * 2 - 1
    k = made.kernel(x.double())
    alpha = torch.linalg.solve(k + 1e-6 * torch.eye(len(k), dtype=k.dtype), y.double())
    error = (made.kernel(test, x.double()) @ alpha - test[:, :3].prod(1)).square().mean()
    assert error < 0.05
    with pytest.warns(UserWarning, match=r"off the sphere.*spread"):
        design((x * torch.linspace(0.8, 1.2, 256)[:, None], x[:, 0]))


@pytest.mark.parametrize(
    ("target", "settings", "sentence"),
    [
        ([1.0, -0.1], {}, r"negative Taylor coefficient -0\.1 at order 1"),
        (lambda c: 0.5 + 0.5 * c - 0.1 * c**2 + c**4, {}, r"negative Taylor coefficient -0\.1 at order 2"),
        (lambda c: c**20 - 0.1 * c**15, {}, r"negative harmonic .* at order 15"),
        (lambda c: torch.exp(c[:, None]), {}, "one finite number"),
        (lambda c: torch.ones(2) @ torch.ones(3), {}, "must map float64 cosines"),
        (lambda c: 1 / (c - 1), {}, "one finite number"),
        (lambda c: -1 + 0 * c, {}, "K\\(1\\) > 0"),
        ("relu4", {}, "must be 'relu:L' or 'erf:L'"),
        ("gelu:2", {}, "Unknown activation of a named target 'gelu'"),
        ("relu:0", {}, "from 1 to 100"),
        (nn.ReLU(), {}, "target must be a function of the cosine"),
        (["a"], {}, "target must be a function of the cosine"),
        ([1.0], {"kind": "kernel"}, "Unknown kind"),
        ([1.0], {"basis": "linear"}, "Unknown basis"),
        ([1.0], {"knots": 9}, "knots must be 'auto' or an integer from 1 to 8"),
        ([1.0], {"knots": 2}, "knots must be 'auto' with basis='hermite'"),
        ([1.0], {"radius": -1.0}, "radius must be a positive number"),
        ([1.0], {"radius": True}, "radius must be a positive number"),
        ([1.0], {"radius": 1e-31}, "radius must be a positive number from 1e-09 to 1e\\+09"),
        ([1.0] * 102, {}, "order 100 at most, not 101"),
        ({0: 0.5, 1: 0.5}, {}, "target must be a function of the cosine.*not dict"),
        ({0.5, 0.25}, {}, "target must be a function of the cosine.*not set"),
        ([1e300, 1e300], {}, r"K\(1\) from 1e-100 to 1e\+100, not 2e\+300"),
        ([1e-300], {}, r"K\(1\) from 1e-100"),
        ("relu:101", {}, "target 'relu:101': the hidden layers must be a whole number from 1 to 100"),
        ("erf:" + "9" * 5000, {}, "the hidden layers must be a whole number from 1 to 100"),
        ((torch.ones(4, 2), torch.ones(3)), {}, "X must be"),
        ((torch.ones(4, 2), torch.zeros(4)), {}, "y is 0 everywhere"),
    ],
)
def test_refusals(target, settings, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        design(target, **settings)


def test_no_false_refusals() -> None:
    for kernel in (lambda c: torch.exp(c - 1), lambda c: c**8, lambda c: 1e3 / (1.2 - c), lambda c: 1 + 0 * c):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heavy tails
            made = design(kernel, basis="hermite", kind="nngp")
        assert isinstance(made.activation, Hermite)
