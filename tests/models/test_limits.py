"""Limits of networks: against textbook recursions, Monte Carlo over finite networks, and their own symmetries."""

import math
from dataclasses import replace

import pytest
import torch
from limit_references import arc_cosine, arc_sine, empirical, recursion, trained
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from models.activations import Erf
from models.layers import Conv2d, Linear
from models.limits import Kernels, NoInfiniteWidthLimit, function_rule, infinite_width, rule
from models.limits import infinite as infinite_module
from models.mlp import mlp

DUALS = {"relu": arc_cosine, "erf": arc_sine}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(n: int, d: int) -> torch.Tensor:
    """Rows of unequal norms, from half to twice the usual."""
    return torch.randn(n, d, dtype=torch.float64) * torch.linspace(0.5, 2, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("depth", [0, 1, 3, 20])
def test_closed_forms_against_the_textbook(activation, depth) -> None:
    x1, x2 = inputs(7, 5), inputs(9, 5)
    net = mlp(5, 4, depth, 1, activation, w_std=1.3, b_std=0.2, readout_w_std=0.8, readout_b_std=0.5)
    limit = infinite_width(net)(x1, x2)
    stds = (1.3**2, 0.2**2, 0.8**2, 0.5**2) if depth else (0.8**2, 0.5**2, 0.0, 0.0)
    nngp, ntk = recursion(DUALS[activation], x1.numpy(), x2.numpy(), depth, *stds)
    # The reference's arccos costs digits next to angle 0, where a deep ReLU network ends: 1e-16 becomes 1e-8.
    tolerance = 1e-6 if depth == 20 else 1e-12
    torch.testing.assert_close(limit.nngp, torch.from_numpy(nngp), rtol=tolerance, atol=0)
    torch.testing.assert_close(limit.ntk, torch.from_numpy(ntk), rtol=tolerance, atol=0)
    assert limit.error == 0.0


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu", "abs", "sin", "elu", "step"])
def test_one_hidden_layer_against_finite_networks(activation) -> None:
    # With one hidden layer both kernels are unbiased at every width, so only the draws' scatter is left.
    draws, width = 400, 128
    x1, x2 = inputs(3, 4), inputs(2, 4)
    x1[0] = x2[0] * 1.5
    net = mlp(4, width, 1, 1, activation, w_std=1.4, b_std=0.3, readout_w_std=0.9, readout_b_std=0.2).double()
    params = {name: torch.randn(draws, *p.shape, dtype=p.dtype) for name, p in net.named_parameters()}
    f1, f2 = (vmap(lambda p, x=x: functional_call(net, p, (x,))[:, 0])(params) for x in (x1, x2))
    ntk = vmap(lambda p: empirical(net, p, x1, x2))(params)
    limit = infinite_width(net)(x1, x2)
    for sample, expected in ((f1[:, :, None] * f2[:, None, :], limit.nngp), (ntk, limit.ntk)):
        error = sample.std(0) / math.sqrt(draws)
        assert ((sample.mean(0) - expected).abs() < 4.5 * error).all()
        assert (error < 0.2 * expected.abs().max()).all()  # so that the comparison says something


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_deep_networks_approach_the_limit_in_width(activation) -> None:
    x = inputs(4, 6)
    errors = []
    for width in (64, 1024):
        net = mlp(6, width, 3, 1, activation, b_std=0.3).double()
        limit = infinite_width(net)(x).ntk
        kernels = []
        for _ in range(8):
            for layer in net:
                if isinstance(layer, Linear):
                    layer.reset_parameters()
            kernels.append(empirical(net, trained(net), x, x))
        errors.append(torch.stack([(k - limit).norm() / limit.norm() for k in kernels]).square().mean().sqrt())
    assert errors[1] < 5 / math.sqrt(1024)
    assert 2 < errors[0] / errors[1] < 8  # 1 / sqrt(width): a ratio of 4


@pytest.mark.parametrize("which", ["ours", "torch"])
def test_standard_parameterization_is_the_leading_prediction(which) -> None:
    width, draws = 600, 16
    x = inputs(4, 64)

    def layer(fan_in: int, fan_out: int) -> nn.Module:
        if which == "torch":
            return nn.Linear(fan_in, fan_out)
        return Linear(fan_in, fan_out, w_std=1.5, b_std=0.5, parameterization="standard")

    net = nn.Sequential(layer(64, width), nn.ReLU(), layer(width, width), nn.ReLU(), layer(width, 1)).double()
    limit = infinite_width(net)(x)
    ratios = []
    for _ in range(draws):
        for module in net[::2]:
            module.reset_parameters()
        ratios.append(empirical(net, trained(net), x, x) / limit.ntk)
    ratio = torch.stack(ratios)
    error = ratio.std(0) / math.sqrt(draws)
    assert ((ratio.mean(0) - 1).abs() < 4.5 * error + 10 / width).all()  # the scatter, and the next order in 1 / width
    assert error.max() < 0.08
    assert (limit.ntk > 5).all()  # the part of order width is there


def test_standard_and_ntk_have_the_same_nngp() -> None:
    x = inputs(5, 3)
    kernels = [
        infinite_width(mlp(3, 9, 2, 1, "tanh", p, b_std=0.4, readout_b_std=0.1))(x).nngp for p in ("ntk", "standard")
    ]
    torch.testing.assert_close(kernels[0], kernels[1], rtol=1e-14, atol=0)


def test_standard_by_hand() -> None:
    x = inputs(3, 5)
    net = nn.Sequential(Linear(5, 7, 1.2, 0.3, "standard"), nn.Identity(), Linear(7, 1, 0.9, None, "standard"))
    gram = x @ x.T / 5
    hidden = 1.2**2 * gram + 0.3**2
    torch.testing.assert_close(infinite_width(net)(x).ntk, 0.81 * (5 * gram + 1) + 7 * hidden)


@pytest.mark.parametrize("frozen", ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"])
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_frozen_parameters_add_nothing(frozen, parameterization) -> None:
    x = inputs(3, 20)
    net = mlp(20, 1000, 2, 1, "relu", parameterization, b_std=0.8, readout_b_std=0.9).double()
    everything = infinite_width(net)(x).ntk
    net.get_parameter(frozen).requires_grad_(False)
    limit = infinite_width(net)(x).ntk
    share = everything - limit
    alone = empirical(net, {frozen: net.get_parameter(frozen).detach()}, x, x)
    assert share.norm() > 0.5
    assert ((alone - share).norm() / share.norm()).item() < 0.2


def test_readout_only_has_the_nngp_as_ntk() -> None:
    x = inputs(6, 4)
    net = mlp(4, 8, 2, 1, "erf", b_std=0.3, readout_b_std=0.4)
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith("5"))
    limit = infinite_width(net)(x)
    torch.testing.assert_close(limit.ntk, limit.nngp, rtol=1e-14, atol=0)


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", "leaky_relu", "elu"])
def test_symmetric_case(activation) -> None:
    x = inputs(300, 10)
    f = infinite_width(mlp(10, 4, 2, 1, activation, b_std=0.3))
    symmetric, cross = f(x), f(x, x.clone())
    off = ~torch.eye(300, dtype=torch.bool)
    for one, two in zip(symmetric[:2], cross[:2], strict=True):
        assert torch.equal(one, one.T)
        torch.testing.assert_close(one[off], two[off], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one, two, rtol=1e-7, atol=0)
        values = torch.linalg.eigvalsh(one)
        assert values[0] > -1e-10 * values[-1]
    torch.testing.assert_close(f(x).nngp, f(x[:, torch.randperm(10)]).nngp)  # a rotation


def test_diagonal_is_exact_after_20_layers() -> None:
    # ReLU with w_std^2 = 2 and no bias keeps the variance; the NTK of layer L adds one such term a layer.
    x = inputs(40, 6)
    limit = infinite_width(mlp(6, 4, 20, 1, "relu"))(x)
    variance = (x * x).sum(1) / 6
    torch.testing.assert_close(limit.nngp.diagonal(), variance, rtol=1e-13, atol=0)
    torch.testing.assert_close(limit.ntk.diagonal(), 21 * variance, rtol=1e-13, atol=0)


def test_positive_semidefinite_at_20_layers() -> None:
    limit = infinite_width(mlp(6, 4, 20, 1, "relu", b_std=0.1))(inputs(60, 6))
    for kernel in limit[:2]:
        values = torch.linalg.eigvalsh(kernel)
        assert values[0] > -1e-12 * values[-1]


def test_zero_inputs() -> None:
    x = inputs(4, 3)
    x[1] = 0
    for activation in ("relu", "erf", "tanh", "gelu"):
        limit = infinite_width(mlp(3, 4, 2, 1, activation))(x)
        assert torch.isfinite(limit.ntk).all()
        torch.testing.assert_close(limit.ntk[1], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("activation", ["gelu", "sign", "step", "sin", "cos", "erf", "gaussian", "relu", "identity"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e8, 1e30])
def test_equal_and_nearly_equal_inputs_at_any_scale(activation, scale) -> None:
    # Large inputs make any of these a jump, which magnifies an angle of 1e-8 to 1e-2 within three layers.
    x = torch.randn(6, 7, dtype=torch.float64) * scale
    x[1], x[2], x[3], x[4] = x[0], x[0] * (1 + 1e-9), 0, -x[0]
    limit = infinite_width(mlp(7, 5, 3, 1, activation, w_std=1.4, b_std=0.1))
    symmetric, cross = limit(x), limit(x, x.clone())
    for kernel, other in zip(symmetric[:2], cross[:2], strict=True):
        assert torch.isfinite(kernel).all()
        size = kernel.abs().max()
        # The angle of nearly equal inputs is known to 1e-8, the root of a rounding.
        assert (kernel - other).abs().max() < 1e-6 * size
        assert torch.linalg.eigvalsh(kernel / size)[0] > -1e-8


@pytest.mark.parametrize("scale", [1e8, 1e30])
def test_what_quadrature_does_not_see_is_refused(scale) -> None:
    x = torch.randn(4, 7, dtype=torch.float64) * scale
    x[0] = 0
    with pytest.raises(NoInfiniteWidthLimit, match="scale the inputs to norms of the order of"):
        infinite_width(mlp(7, 5, 1, 1, "tanh", b_std=0.1))(x)


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("phi", "at_zero", "slope_at_zero"),
    [
        (nn.ReLU(), 0.0, 0.0),
        (nn.LeakyReLU(0.2), 0.0, 0.2),
        (nn.Threshold(0.0, -1.0), -1.0, 0.0),
        (Function(lambda z: (z > 0).to(z.dtype) - 0.3 + 0.1 * z), -0.3, 0.1),
        (Function(lambda z: torch.where(z >= 0, z.cos(), z - 1)), 1.0, 0.0),
        (nn.ELU(), 0.0, 1.0),
    ],
)
def test_jumps_and_kinks_at_exactly_zero(phi, at_zero, slope_at_zero) -> None:
    # Standard parameterization without bias variance: u is exactly 0 for a zero vector, and its bias is trained.
    x = inputs(4, 3)
    x[1] = 0
    net = nn.Sequential(Linear(3, 50, 1.5, 0.0, "standard"), phi, Linear(50, 1, 0.9, None, "standard"))
    limit, cross = infinite_width(net)(x), infinite_width(net)(x, x.clone())
    for j in range(4):
        s = float(1.5 * x[j].norm() / 3**0.5)
        z = s * torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:-1] + 1e-9
        z.requires_grad_()
        value = phi(z)
        slope = torch.autograd.grad(value.sum(), z)[0]
        weight = torch.exp(-((z.detach() / max(s, 1e-9)) ** 2) / 2)
        # E[phi(v)] and E[phi'(v)] by a sum of 200,000 terms: some 1e-5 for a jump
        mean, bend = (
            (float((t * weight).sum() / weight.sum()) for t in (value.detach(), slope))
            if s
            else (at_zero, slope_at_zero)
        )
        nngp = 0.81 * at_zero * mean
        ntk = 0.81 * slope_at_zero * bend * 1.0 + 50 * at_zero * mean
        for kernels in (limit, cross):
            assert kernels.nngp[1, j].item() == pytest.approx(nngp, abs=1e-4)
            assert kernels.ntk[j, 1].item() == pytest.approx(ntk, abs=5e-3)


@pytest.mark.parametrize("activation", ["relu", pytest.param("tanh", marks=pytest.mark.slow)])
def test_tiles_do_not_show(activation, monkeypatch) -> None:
    x1, x2 = inputs(70, 5), inputs(45, 5)
    f = infinite_width(mlp(5, 4, 2, 1, activation, b_std=0.3))
    whole = f(x1, x2), f(x1)
    small = f(x1, x2, memory=20_000), f(x1, memory=20_000)
    monkeypatch.setattr(infinite_module, "TILE", 7)
    for other in (small, (f(x1, x2), f(x1))):
        for one, two in zip(whole, other, strict=True):
            torch.testing.assert_close(one.nngp, two.nngp, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(one.ntk, two.ntk, rtol=1e-9, atol=1e-12)


def test_dtype_of_the_inputs() -> None:
    x = inputs(5, 4)
    for activation in ("relu", "gelu"):
        f = infinite_width(mlp(4, 4, 2, 1, activation, b_std=0.2))
        single = f(x.float())
        assert single.ntk.dtype == torch.float32
        torch.testing.assert_close(single.ntk.double(), f(x).ntk, rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """The same network as an nn.Sequential, written with functions, methods, buffers and nesting."""

    def __init__(self, layers: list[Linear], inner: object) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(layers[0]))
        self.middle, self.last = layers[1:]
        self.inner = inner
        self.register_buffer("mean", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten((x - self.mean) / 2, 1)
        x = self.inner(self.stem(x))
        return self.last(torch.flatten(self.inner(self.middle(x)), 1))


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nn.ReLU(), torch.relu),
        (nn.ReLU(inplace=True), lambda z: z.relu()),
        (nn.GELU(approximate="tanh"), lambda z: functional.gelu(z, approximate="tanh")),
        (Erf(), torch.erf),
        (nn.LeakyReLU(0.3), lambda z: functional.leaky_relu(z, negative_slope=0.3)),
        (nn.Softplus(2.0), lambda z: functional.softplus(z, 2.0)),
        (nn.Tanh(), lambda z: z.tanh()),
        (nn.ELU(inplace=True), functional.elu),
        (nn.SiLU(), functional.silu),
    ],
)
def test_functions_and_nesting_equal_modules(module, function) -> None:
    layers = [Linear(6, 4, 1.5, 0.3), Linear(4, 4, 1.5, 0.3), Linear(4, 1)]
    x1, x2 = inputs(5, 6).reshape(5, 2, 3), inputs(4, 6).reshape(4, 2, 3)
    before = x1.clone()
    plain = nn.Sequential(layers[0], module, nn.Dropout(0.5), layers[1], nn.Identity(), module, layers[2]).eval()
    expected = infinite_width(plain)((x1.flatten(1) - 0.5) / 2, (x2.flatten(1) - 0.5) / 2)
    for net in (Branches(layers, function), Branches(layers, module)):
        limit = infinite_width(net)(x1, x2)
        torch.testing.assert_close(limit.nngp, expected.nngp)
        torch.testing.assert_close(limit.ntk, expected.ntk)
    assert torch.equal(x1, before)


def test_activation_of_the_inputs_is_computed_exactly() -> None:
    x = inputs(5, 6)
    features = torch.tanh(torch.relu(x))
    before = x.clone()
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Tanh(), Linear(6, 3, 1.1, 0.2), nn.ReLU(), Linear(3, 1))
    expected = infinite_width(net[2:])(features)
    limit = infinite_width(net)(x)
    assert torch.equal(limit.ntk, expected.ntk)
    assert torch.equal(x, before)


def test_a_single_layer_is_a_network() -> None:
    x = inputs(4, 3)
    torch.testing.assert_close(infinite_width(Linear(3, 2, 1.5, 0.5))(x).ntk, 1.5**2 * x @ x.T / 3 + 0.25)


def test_a_users_rules() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    @rule(Doubled, role="linear")
    def doubled(module: Doubled, k: Kernels) -> Kernels:
        return replace(k, nngp=4 * k.nngp, ntk=4 * k.ntk)

    @function_rule(torch.special.i0, role="linear")
    def scaled(k: Kernels) -> Kernels:
        return replace(k, nngp=4 * k.nngp, ntk=4 * k.ntk)

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x)

    x1, x2 = inputs(5, 3), inputs(4, 3)
    plain = infinite_width(nn.Sequential(Linear(3, 4, 1.2), nn.Tanh(), Linear(4, 1)))(x1, x2)
    for module in (Doubled(), Scaled()):
        limit = infinite_width(nn.Sequential(Linear(3, 4, 0.6), module, nn.Tanh(), Linear(4, 1)))(x1, x2)
        torch.testing.assert_close(limit.nngp, plain.nngp)
        torch.testing.assert_close(limit.ntk, plain.ntk)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_stated_variance_of_torchs_layers(kind) -> None:
    if kind == "linear":
        theirs, ours = nn.Linear(5, 7), Linear(5, 7, 1.4, 0.3, "standard")
        x, rest = inputs(4, 5), []
    else:
        theirs, ours = (
            nn.Conv2d(5, 7, 3, padding=1),
            Conv2d(5, 7, 3, 1, 1, w_std=1.4, b_std=0.3, parameterization="standard"),
        )
        x, rest = inputs(4, 45).reshape(4, 5, 3, 3), [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    theirs.w_std, theirs.b_std = 1.4, 0.3
    one, two = (infinite_width(nn.Sequential(layer, nn.ReLU(), *rest, Linear(7, 1)))(x) for layer in (theirs, ours))
    torch.testing.assert_close(one.nngp, two.nngp, rtol=1e-14, atol=0)
    torch.testing.assert_close(one.ntk, two.ntk, rtol=1e-14, atol=0)
    theirs.w_std = -1
    with pytest.raises(ValueError, match="w_std must be a finite number of at least 0, not -1"):
        infinite_width(nn.Sequential(theirs, *rest, Linear(7, 1)))(x)
