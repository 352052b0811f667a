"""Dual maps of activations by quadrature: against scipy, closed forms, and their own stated error."""

import itertools
import math

import numpy as np
import pytest
import torch
from limit_references import duals, expectation, made, normal_density
from scipy import integrate, special
from torch import nn
from torch.nn import functional

from models.activations import Erf, Sin, activation
from models.layers import Conv2d, Linear
from models.limits import NoInfiniteWidthLimit, elementwise, infinite_width
from models.limits.elementwise import _covering
from models.limits.kinks import kinks
from models.limits.nested import nested, pair_maps
from models.limits.piecewise import dual, pieces
from models.limits.quadrature import dual_table, known_breaks, single_maps

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


@pytest.mark.parametrize("name", ["tanh", "gelu", "elu", "sigmoid", "mish", "softsign"])
def test_stated_error_bounds_the_actual_one(name) -> None:
    phi = activation(name)
    table = dual_table(phi, 0.4, 2.0, torch.device("cpu"))
    s = torch.linspace(0.4, 2.0, 7, dtype=torch.float64)
    value, slope = (t[0] for t in table(s[None], s[None], torch.zeros(1, 7, 7, dtype=torch.float64)))
    (exact_value, exact_slope), error = single_maps(phi, s)
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


def test_a_table_is_made_anew_for_smaller_and_larger_inputs() -> None:
    """A limit keeps its tables from call to call; they must cover what comes later, and what came before."""
    s = torch.tensor([1.0, 2.0], dtype=torch.float64)
    table = _covering(None, functional.silu, s)
    assert _covering(table, functional.silu, s) is table
    for scale in (0.3, 3.0):
        low, high = _covering(table, functional.silu, scale * s).spread
        assert low <= min(1.0, scale)
        assert high >= max(2.0, 2 * scale)


def test_activation_that_is_not_smooth_is_refused() -> None:
    @elementwise
    class Staircase(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.floor(3 * x + 0.5)

    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(NoInfiniteWidthLimit, match=r"'1' \(Staircase\): the activation is not smooth between a few"):
        infinite_width(nn.Sequential(Linear(3, 4), Staircase(), Linear(4, 1)))(x)


def _clipped(q: float) -> tuple[float, float]:
    """E[h(z)^2] and E[h'(z)^2] for h = clip to [-1, 1], z of variance q."""
    inside = math.erf(1 / math.sqrt(2 * q))
    density = 2 * math.sqrt(q / (2 * math.pi)) * math.exp(-1 / (2 * q))
    return q * inside - density + (1 - inside), inside


def test_images_by_series_are_those_in_closed_form() -> None:
    """2 ndtr(z) - 1 = erf(z / sqrt 2): all pairs of pixels, and three images beside two."""
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64)

    def limit(phi: nn.Module, *ends: nn.Module) -> torch.Tensor:
        found = infinite_width(nn.Sequential(Conv2d(2, 4, 2), phi, Conv2d(4, 4, 2, padding=1), phi, *ends))(
            x[:3], x[3:]
        )
        return torch.stack([found.nngp, found.ntk])

    for ends in ((nn.AvgPool2d((1, 2)), nn.Flatten(), Linear(24, 1)), (nn.Flatten(), Linear(48, 1))):
        series = limit(made(lambda z: 2 * torch.special.ndtr(z) - 1), *ends)
        torch.testing.assert_close(series, limit(made(lambda z: torch.erf(z / 2**0.5)), *ends), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", "shifted ReLUs", "function"])
def test_kinks_away_from_zero(kind) -> None:
    phi = {
        "module": nn.Hardtanh(),
        "shifted ReLUs": made(lambda x: torch.relu(x + 1) - torch.relu(x - 1) - 1),
        "function": made(lambda x: x.clamp(-1, 1)),
    }[kind]
    cosine = torch.tensor([0.4, -0.95, 0.999, 1 - 1e-10], dtype=torch.float64)
    for variance, other in ((0.5, 0.5), (2.0, 2.0), (0.5, 2.0), (0.7, 0.7 * (1 + 1e-4)), (0.01, 3.0)):
        q, r = torch.tensor([variance], dtype=torch.float64), torch.full((4,), other, dtype=torch.float64)
        value, slope, error = duals(phi, q, r, cosine)
        assert error < 1e-9
        for j, c in enumerate(cosine.tolist()):
            expected = expectation_of_clips(variance, other, c * math.sqrt(variance * other))
            # Kinks are found to 1e-9 of the range; theta is known to 1e-16 / theta, and the slope falls linearly in it.
            assert value[0, j].item() == pytest.approx(expected[0], abs=1e-9)
            assert slope[0, j].item() == pytest.approx(expected[1], abs=1e-8)
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    limit = infinite_width(nn.Sequential(Linear(2, 3), phi, Linear(3, 1)))(x)
    square, inside = _clipped(1.0)
    assert limit.nngp.item() == pytest.approx(square, abs=1e-9)
    assert limit.ntk.item() == pytest.approx(square + inside, abs=1e-8)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: (z > 0.5).to(z.dtype) - 2 * (z > -0.3).to(z.dtype) + 0.4,
        lambda z: torch.relu(z - 0.4) - 0.7 * torch.relu(-z - 0.2) + 0.3 * z - 0.1,
        lambda z: functional.hardshrink(z, 0.6),
    ],
)
def test_straight_pieces_against_a_grid(function) -> None:
    # Sums over a fine grid of u and, inside, of v given u: errors of the order of the spacing at jumps.
    phi = made(function)
    a, b, c = 0.8, 1.7, 0.6
    value, slope, _ = duals(phi, torch.tensor([a]).double(), torch.tensor([b]).double(), torch.tensor([c]).double())
    x = (torch.arange(-9000, 9000, dtype=torch.float64) + 0.5) / 1000
    weight = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) / 1000
    u, v = math.sqrt(a) * x[::4], c * x[::4, None] + math.sqrt(1 - c * c) * x[::8]
    outer, inner = weight[::4] * 4, weight[::8] * 8
    expected = outer @ (function(u) * (function(math.sqrt(b) * v) @ inner))
    assert value.item() == pytest.approx(expected.item(), abs=4e-3)
    if slope.abs() > 1e-6:
        du, dv = (torch.autograd.functional.jvp(function, z, torch.ones_like(z))[1] for z in (u, math.sqrt(b) * v))
        assert slope.item() == pytest.approx((outer @ (du * (dv @ inner))).item(), abs=4e-3)


def _hardswish_moments(a: float, b: float, k: float) -> tuple[float, float]:
    """E[h(u) h(v)] and E[h'(u) h'(v)] for the hard swish: scipy over u, and v given u in pieces of 2,000 midpoints."""
    rest, middle = math.sqrt(b - k * k / a), (np.arange(2000) + 0.5) / 2000

    def h(z: np.ndarray) -> np.ndarray:
        return z * np.clip((z + 3) / 6, 0, 1)

    def slope(z: np.ndarray) -> np.ndarray:
        return np.where(z > 3, 1.0, np.where(z < -3, 0.0, (2 * z + 3) / 6))

    def given(f, mean: float) -> float:
        low, high = mean - 9 * rest, mean + 9 * rest
        ends = [low, *[x for x in (-3, 3) if low < x < high], high]
        total = 0.0
        for start, stop in itertools.pairwise(ends):
            v = start + (stop - start) * middle
            total += float((f(v) * normal_density((v - mean) / rest)).sum()) * (stop - start) / 2000 / rest
        return total

    found = []
    edges = sorted({x for x in (-3, 3, *(s * 3 * a / k for s in (-1, 1))) if abs(x) < 9 * math.sqrt(a)})
    for f in (h, slope):

        def weight(u: float, f=f) -> float:
            return float(f(np.array(u))) * given(f, k / a * u) * normal_density(u / math.sqrt(a)) / math.sqrt(a)

        ends = [-9 * math.sqrt(a), *edges, 9 * math.sqrt(a)]
        found.append(sum(integrate.quad(weight, *pair, epsabs=1e-9)[0] for pair in itertools.pairwise(ends)))
    return found[0], found[1]


def test_other_kinks_away_from_zero_at_any_norms() -> None:
    phi, norms = nn.Hardswish(), torch.tensor([4.0, 2.6, 1.0], dtype=torch.float64)
    cosine = torch.tensor([0.7, -0.9, 0.99], dtype=torch.float64)
    value, slope, error = duals(phi, torch.tensor([2.5], dtype=torch.float64), norms, cosine)
    assert 0 < error < 1e-7
    for j, (b, c) in enumerate(zip(norms.tolist(), cosine.tolist(), strict=True)):
        expected = _hardswish_moments(2.5, b, c * math.sqrt(2.5 * b))
        # Midpoints: (width / 2000)^2 / 24 of the second derivative, some 1e-6.
        assert value[0, j].item() == pytest.approx(expected[0], abs=3e-6)
        assert slope[0, j].item() == pytest.approx(expected[1], abs=3e-6)


def test_pairs_of_nodes_against_the_closed_form_of_straight_pieces() -> None:
    # Two ways to the same maps: nested nodes for every pair, and sums of moments above thresholds.
    phi, s = nn.Hardtanh(-0.5, 1.3), torch.tensor([0.3, 0.9, 1.0, 4.0], dtype=torch.float64)
    theta = torch.tensor([1e-6, 0.01, 0.5, 1.7, 3.1], dtype=torch.float64)[:, None, None].expand(-1, 4, 4)
    plan = nested(phi, 0.3, 4.0, torch.device("cpu"))
    found = pair_maps(phi, s[:, None], s, theta, plan)
    breaks = known_breaks(phi, 4.0, torch.device("cpu"))
    straight = pieces(phi, breaks, 40.0, torch.device("cpu"))
    q = s * s
    expected = dual(straight, theta, s[:, None] * s * theta.cos(), q[:, None], q)
    assert plan.error < 1e-8
    for one, two in zip(found, expected, strict=True):
        assert (one - two).abs().max() < 1e-7 * two.abs().max()


def test_kinks_at_round_numbers_are_found() -> None:
    # Of a range of 8 or 16, halving never has 2 or 4 inside a panel.
    for place in (1.0, 2.0, 2.5, 4.0):
        for radius in (8.0, 10.0, 16.0):
            found = kinks(lambda z, p=place: torch.relu(z - p) ** 2 + z, radius, radius / 8, torch.device("cpu"))
            # Panels are cut to 1e-4 of the range at least.
            assert found == pytest.approx([place], abs=2e-4 * radius)


def expectation_of_clips(a: float, b: float, k: float) -> tuple[float, float]:
    """E[h(u) h(v)] and P(|u| < 1, |v| < 1) for h = clip to [-1, 1]: one dimension at a time, in closed form inside."""
    rest = math.sqrt(b - k * k / a)

    def inner(u: float) -> tuple[float, float]:
        mean = k / a * u
        low, high = (-1 - mean) / rest, (1 - mean) / rest
        inside = special.ndtr(high) - special.ndtr(low)
        density = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / math.sqrt(2 * math.pi)
        value = mean * inside + rest * density + special.ndtr(-high) - special.ndtr(low)
        return value, inside

    def weight(u: float) -> float:
        return math.exp(-u * u / (2 * a)) / math.sqrt(2 * math.pi * a)

    # The inner functions change where v's mean passes an edge, within a few deviations.
    edge, width = abs(a / k), 10 * rest * abs(a / k)
    far = 12 * math.sqrt(a)
    middle = [sign * x for sign in (-1, 1) for x in (1.0, edge, edge - width, edge + width)]
    ends = [-far, *sorted(x for x in middle if -far < x < far), far]
    value = inside = 0.0
    for low, high in itertools.pairwise(ends):
        clip = lambda u: weight(u) * max(-1, min(1, u)) * inner(u)[0]  # noqa: E731
        value += integrate.quad(clip, low, high, epsabs=1e-13)[0]
        if low >= -1 and high <= 1:
            inside += integrate.quad(lambda u: weight(u) * inner(u)[1], low, high, epsabs=1e-13)[0]
    return value, inside


FAR = {
    "tanh": (nn.Tanh(), np.tanh, lambda z: np.cosh(np.clip(z, -300, 300)) ** -2.0),
    "sigmoid": (nn.Sigmoid(), special.expit, lambda z: special.expit(z) * special.expit(-z)),
    "softplus": (nn.Softplus(), lambda z: np.logaddexp(0, z), special.expit),
    "silu": (
        nn.SiLU(),
        lambda z: z * special.expit(z),
        lambda z: special.expit(z) * (1 + z * special.expit(-z)),
    ),
    "elu": (nn.ELU(), lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))), lambda z: np.exp(np.minimum(z, 0))),
    "one's own": (
        made(lambda z: z * torch.sigmoid(1.7 * z) + 0.1 * torch.tanh(3 * z)),
        lambda z: z * special.expit(1.7 * z) + 0.1 * np.tanh(3 * z),
        lambda z: (
            special.expit(1.7 * z) * (1 + 1.7 * z * special.expit(-1.7 * z))
            + 0.3 * np.cosh(np.clip(3 * z, -300, 300)) ** -2.0
        ),
    ),
}


def _stretched(f, s: float, t: float, cosine: float) -> float:
    """E[f(u) f(v)] by the trapezoidal rule in asinh(10^4 z), which sees all scales: around u = 0, and inside v = 0."""
    sine, steps = math.sqrt(1 - cosine * cosine), np.arange(-14, 14, 0.02)
    z, width = 1e-4 * np.sinh(steps), 2e-6 * np.cosh(steps)
    inside = np.exp(-((z[None] - cosine / sine * z[:, None]) ** 2) / 2) / math.sqrt(2 * math.pi)
    given = (inside * width) @ f(t * sine * z)
    return float((f(s * z) * given * width) @ normal_density(z))


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("silu", 1000.0),
        *(pytest.param(name, 30.0, marks=pytest.mark.slow) for name in FAR),
        pytest.param("tanh", 1000.0, marks=pytest.mark.slow),
    ],
)
def test_inputs_far_larger_than_the_scale_of_the_activation(name, largest) -> None:
    phi, f, slope_of = FAR[name]
    first, second = [0.0, largest], [largest / 30, largest, largest / 2]
    cosine = torch.tensor([-0.8, 0.99, 0.3], dtype=torch.float64)
    q1, q2 = (torch.tensor(s, dtype=torch.float64) ** 2 for s in (first, second))
    value, slope, error = duals(phi, q1, q2, cosine)
    assert 0 < error < 1e-6
    # Of a table (the largest deviation is then some tens) the error is stated relative to each map's largest value;
    # nodes of each pair are right relative to it.
    sizes = [_stretched(h, largest, largest, 0.9) for h in (f, slope_of)]
    for i, s in enumerate(first):
        for j, (t, c) in enumerate(zip(second, cosine.tolist(), strict=True)):
            assert value[i, j].item() == pytest.approx(_stretched(f, s, t, c), rel=1e-7, abs=error * sizes[0])
            if s > 0:  # at 0 the covariance, by which `duals` divides, is 0
                expected = _stretched(slope_of, s, t, c)
                assert slope[i, j].item() == pytest.approx(expected, rel=1e-6, abs=error * sizes[1])
