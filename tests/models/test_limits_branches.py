"""Residual and concatenated networks, normalisation and dropout: against finite networks and written-out formulas."""

import math

import numpy as np
import pytest
import torch
from limit_references import arc_cosine, arc_sine, empirical
from torch import nn
from torch.func import functional_call

from models.layers import Conv2d, Linear
from models.limits import NoInfiniteWidthLimit, check_rule, infinite_width
from models.resnet import resnet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64) * torch.linspace(0.5, 2, n, dtype=torch.float64)[:, None]


class Net(nn.Module):
    """Layers `l0`, `l1`, ... and a forward of them."""

    def __init__(self, forward, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.layers)


def dense(fan_in: int, fan_out: int) -> Linear:
    return Linear(fan_in, fan_out, 1.3, 0.2)


W = 400


def residual(x, stem, inner, outer, last):
    h = stem(x)
    return last(torch.erf(h + 0.7 * outer(torch.relu(inner(torch.relu(h))))))


def subtracted(x, stem, inner, outer, last):
    h = stem(x)
    return last(torch.relu(torch.sub(h, outer(torch.erf(inner(h))), alpha=0.5)))


def activated_shortcut(x, stem, inner, outer, last):
    h = torch.relu(stem(x))
    return last(h + outer(torch.erf(inner(h))))


def of_the_input(x, stem, inner, outer, last):
    h = stem(x) + inner(x)
    h += 0.5 * outer(torch.relu(h))
    return last(torch.relu(h))


def concatenated(x, stem, inner, outer, last):
    h = stem(x)
    a = torch.relu(inner(torch.relu(h)))
    return last(torch.erf(outer(torch.cat([torch.relu(h), a], 1))))


def concatenated_before_activation(x, stem, inner, outer, last):
    h = stem(x)
    h = torch.cat([h, inner(torch.relu(h))], 1)
    return last(torch.erf(outer(2 * torch.relu(h / 2))))


NETS = {
    residual: lambda w: [dense(5, w), dense(w, w), dense(w, w), dense(w, 1)],
    subtracted: lambda w: [dense(5, w), dense(w, w), dense(w, w), dense(w, 1)],
    activated_shortcut: lambda w: [dense(5, w), dense(w, w), dense(w, w), dense(w, 1)],
    of_the_input: lambda w: [dense(5, w), dense(5, w), dense(w, w), dense(w, 1)],
    concatenated: lambda w: [dense(5, w), dense(w, w // 2), dense(w + w // 2, w), dense(w, 1)],
    concatenated_before_activation: lambda w: [dense(5, w), dense(w, w // 2), dense(w + w // 2, w), dense(w, 1)],
}


@pytest.mark.parametrize("function", NETS)
def test_branches_against_finite_networks(function) -> None:
    draws = 24
    x1, x2 = inputs(3, 5), inputs(2, 5)
    net = Net(function, *NETS[function](W)).double()
    limit = infinite_width(net)(x1, x2)
    params = {n: torch.randn(draws, *p.shape, dtype=p.dtype) for n, p in net.named_parameters()}
    ntk = torch.stack([empirical(net, {n: p[i] for n, p in params.items()}, x1, x2) for i in range(draws)])
    error = ntk.std(0) / math.sqrt(draws)
    # The bias of a network of finite width is of order depth / width.
    assert ((ntk.mean(0) - limit.ntk).abs() < 5 * error + 10 / W * limit.ntk.abs().max()).all()
    assert (error < 0.05 * limit.ntk.abs().max()).all()
    # The NNGP, from the last hidden layer, whose units are many.
    hidden = {}
    net.layers[-1].register_forward_hook(lambda module, args, out: hidden.update(h=args[0]))
    own = []
    for i in range(draws):
        drawn = {n: p[i] for n, p in params.items()}
        both = []
        for x in (x1, x2):
            functional_call(net, drawn, (x,))
            both.append(hidden["h"])
        own.append(1.69 * both[0] @ both[1].T / both[0].shape[1] + 0.04)
    nngp = torch.stack(own)
    error = nngp.std(0) / math.sqrt(draws)
    assert ((nngp.mean(0) - limit.nngp).abs() < 5 * error + 10 / W * limit.nngp.abs().max()).all()


def test_residual_written_out() -> None:
    x = inputs(4, 5)
    net = Net(residual, *NETS[residual](3))
    limit = infinite_width(net)(x)
    K = 1.69 * (x @ x.T).numpy() / 5 + 0.04
    T = K
    k, t = K, T
    for _ in range(2):
        value, slope = arc_cosine(np.diag(k), k, np.diag(k))
        t = 1.69 * (slope * t + value) + 0.04
        k = 1.69 * value + 0.04
    K, T = K + 0.49 * k, T + 0.49 * t
    value, slope = arc_sine(np.diag(K), K, np.diag(K))
    np.testing.assert_allclose(limit.nngp.numpy(), 1.69 * value + 0.04, rtol=1e-7)
    np.testing.assert_allclose(limit.ntk.numpy(), 1.69 * (slope * T + value) + 0.04, rtol=1e-7)


class Block(nn.Module):
    """h + the branch, on images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = Conv2d(width, width, 3, padding=1, w_std=1.2, b_std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(torch.relu(self.norm(x)))


@pytest.mark.parametrize(
    "norm", ["LayerNorm", "LayerNorm, channels last", "GroupNorm", "LayerNorm, flat", "flat, tanh"]
)
def test_normalised_images_against_finite_networks(norm) -> None:
    width, draws = 160, 24
    x1, x2 = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    made = {
        "LayerNorm": nn.LayerNorm([width, 4, 4], eps=0.5),
        "LayerNorm, channels last": nn.LayerNorm(width, eps=0.5),
        "GroupNorm": nn.GroupNorm(1, width, eps=0.5),
        "LayerNorm, flat": nn.LayerNorm(16 * width, eps=0.5),
        "flat, tanh": nn.LayerNorm(16 * width, eps=0.5),
    }[norm]
    phi = torch.tanh if "tanh" in norm else torch.relu

    def forward(x, first, normalise, second, last):
        h = first(x)
        if "last" in norm:
            h = normalise(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        elif "flat" in norm:
            return last(phi(normalise(h.flatten(1))))
        else:
            h = normalise(h)
        return last(second(phi(h)).mean((2, 3)))

    last = dense(16 * width if "flat" in norm else width, 1)
    layers = Conv2d(2, width, 3, padding=1, w_std=1.5, b_std=0.3), made, Conv2d(width, width, 3), last
    net = Net(forward, *layers).double()
    limit = infinite_width(net)(x1, x2)
    ntk = []
    for _ in range(draws):
        for layer in net.layers:
            if not isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                layer.reset_parameters()
        ntk.append(empirical(net, {n: p.detach() for n, p in net.named_parameters()}, x1, x2))
    sample = torch.stack(ntk)
    error = sample.std(0) / math.sqrt(draws)
    assert ((sample.mean(0) - limit.ntk).abs() < 5 * error + 10 / width * limit.ntk.abs().max()).all()
    assert (error < 0.1 * limit.ntk.abs().max()).all()
    without = infinite_width(net.requires_grad_(False))(x1, x2)
    assert not without.ntk.any()


def test_layer_norm_forgets_the_scale() -> None:
    x = inputs(4, 5)
    net = nn.Sequential(dense(5, 8), nn.LayerNorm(8, eps=0.0), nn.ReLU(), dense(8, 1))
    plain = infinite_width(nn.Sequential(Linear(5, 8), *net[1:]))(x)
    scaled = infinite_width(nn.Sequential(Linear(5, 8, 3.0), *net[1:]))(x)
    torch.testing.assert_close(plain.nngp, scaled.nngp, rtol=1e-12, atol=0)
    # The variance before the read-out is 1 / 2 for every input.
    torch.testing.assert_close(plain.nngp.diagonal(), torch.full((4,), 1.69 / 2 + 0.04, dtype=torch.float64))


class Parts(nn.Module):
    """A layer of several parts, made for a width."""

    def __init__(self, forward, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.parts)


AFTER_ACTIVATION = {
    "LayerNorm": (lambda w: nn.LayerNorm(w, eps=0.1), (), True),
    "sigmoid": (lambda w: nn.Sequential(nn.Sigmoid(), nn.LayerNorm(w, eps=0.01)), (), False),
    "residual": (
        lambda w: Parts(lambda x, a, n: n(x + 0.7 * a(x)), Linear(w, w, 1.4, 0.2), nn.LayerNorm(w, eps=0.1)),
        (),
        True,
    ),
    "concatenated": (
        lambda w: Parts(
            lambda x, a, n: n(torch.cat([-x, torch.sigmoid(a(x))], 1)),
            Linear(w, w // 2, 1.4, 0.2),
            nn.LayerNorm(w + w // 2, eps=0.1),
        ),
        (),
        True,
    ),
    "GroupNorm": (lambda w: nn.GroupNorm(1, w), (3, 3), True),
    "pooled and padded": (
        lambda w: nn.Sequential(
            nn.AvgPool2d(2), nn.GroupNorm(2, w, affine=False), nn.ZeroPad2d(1), nn.LayerNorm([w, 4, 4])
        ),
        (4, 4),
        True,
    ),
    "twice, pooled between": (
        lambda w: nn.Sequential(nn.GroupNorm(1, w, affine=False), nn.AvgPool2d(2), nn.LayerNorm([w, 2, 2])),
        (4, 4),
        True,
    ),
    "concatenated images": (
        lambda w: Parts(
            lambda x, a, n: n(nn.functional.avg_pool2d(torch.cat([x, torch.relu(a(x))], 1), 2)),
            Conv2d(w, w // 2, 3, padding=1, w_std=1.4, b_std=0.2),
            nn.GroupNorm(1, w + w // 2),
        ),
        (4, 4),
        True,
    ),
    "flat": (lambda w: nn.Sequential(nn.Flatten(), nn.LayerNorm(9 * w)), (3, 3), True),
    "averaged": (lambda w: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.GroupNorm(1, w)), (3, 3), True),
    "twice": (lambda w: nn.Sequential(nn.LayerNorm(w), nn.BatchNorm1d(w).eval(), nn.LayerNorm(w)), (), True),
}


@pytest.mark.parametrize("case", AFTER_ACTIVATION)
def test_normalisation_after_an_activation_against_finite_networks(case) -> None:
    make, space, activation = AFTER_ACTIVATION[case]
    check_rule(make, space, 64, 80, activation)


def test_normalised_relus_written_out() -> None:
    x = inputs(4, 5)
    limit = infinite_width(nn.Sequential(dense(5, 8), nn.ReLU(), nn.LayerNorm(8, eps=0.3), dense(8, 1)))(x)
    k = 1.69 * (x @ x.T).numpy() / 5 + 0.04
    value, slope = arc_cosine(np.diag(k), k, np.diag(k))
    mean = np.sqrt(np.diag(k) / (2 * math.pi))
    size = np.sqrt(np.diag(k) / 2 - mean**2 + 0.3)
    nngp = (value - np.outer(mean, mean)) / np.outer(size, size)
    ntk = slope * k / np.outer(size, size) + nngp + 1  # gain and bias
    np.testing.assert_allclose(limit.nngp.numpy(), 1.69 * nngp + 0.04, rtol=1e-8)
    np.testing.assert_allclose(limit.ntk.numpy(), 1.69 * (ntk + nngp) + 0.04, rtol=1e-7)


@pytest.mark.parametrize("which", [nn.Dropout, nn.Dropout2d])
def test_dropout_in_training_against_finite_networks(which) -> None:
    # The read-out's input, dropped and averaged over positions: units are many, so few draws tell the variance.
    width, draws, keep = 500, 400, 0.6
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    net = nn.Sequential(
        Conv2d(2, width, 2, w_std=1.4),
        nn.ReLU(),
        which(1 - keep),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Linear(width, 1),
    ).double()
    limit = infinite_width(net)(x).nngp
    hidden = []
    for _ in range(draws):
        net[0].reset_parameters()
        h = net[:-1](x).detach()
        hidden.append(h @ h.T / width)
    sample = torch.stack(hidden)
    error = sample.std(0) / math.sqrt(draws)
    # Both masks of the two inputs are drawn apart.
    assert ((sample.mean(0) - limit).abs() < 4.5 * error).all()
    assert (error < 0.02 * limit).all()
    torch.testing.assert_close(infinite_width(net)(x, x).nngp, infinite_width(net.eval())(x).nngp, rtol=1e-9, atol=0)


def test_a_residual_image_network_is_its_formula_in_blocks() -> None:
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    net = nn.Sequential(Conv2d(2, 4, 3, padding=1), Block(4), Block(4), nn.AvgPool2d(2), nn.Flatten(), Linear(16, 1))
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.requires_grad_(False)
    limit, cross = infinite_width(net)(x), infinite_width(net)(x, x)
    torch.testing.assert_close(limit.ntk, cross.ntk, rtol=1e-8, atol=0)
    shrunk = infinite_width(nn.Sequential(net[0], *net[3:]))(x)
    # A branch adds a positive semidefinite kernel.
    assert torch.linalg.eigvalsh(limit.nngp - shrunk.nngp)[0] > -1e-12


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (lambda x, a, b, c: c((h := a(x)) + h.clone()), "'add' adds correlated branches"),
        (lambda x, a, b, c: c((h := torch.relu(a(x))) + nn.functional.dropout(h, 0.0)), "'add' adds correlated branch"),
        (lambda x, a, b, c: c((h := a(x)) + b(torch.relu(h)) + 0.5 * h), "'add' adds correlated branches"),
        (lambda x, a, b, c: c(torch.relu((h := a(x)) + torch.relu(b(h)))), "'add' adds correlated branches"),
        (lambda x, a, b, c: c(a(x) * torch.sigmoid(b(x))), "'mul' combines different branches"),
    ],
)
def test_refused(forward, sentence) -> None:
    net = Net(forward, dense(3, 3), dense(3, 3), dense(3, 1))
    with pytest.raises(NoInfiniteWidthLimit) as caught:
        infinite_width(net)(inputs(2, 3))
    assert str(caught.value).startswith(sentence)


def test_pooled_shortcut_is_refused() -> None:
    net = Net(
        lambda x, a, pool, c: c(((h := torch.relu(a(x))) + pool(h)).mean((2, 3))),
        Conv2d(2, 3, 1),
        nn.AvgPool2d(3, 1, 1),
        Linear(3, 1),
    )
    with pytest.raises(NoInfiniteWidthLimit, match="'add' adds correlated branches"):
        infinite_width(net)


def test_a_sum_of_copies_stays_gaussian() -> None:
    x = inputs(4, 5)
    layers = dense(5, 4), dense(4, 4), dense(4, 1)
    copies, written = (
        infinite_width(Net(lambda x, a, b, c, f=f: c(torch.relu(f(h := a(x)) + b(torch.erf(h)))), *layers))(x)
        for f in (lambda h: h + h - 0.5 * h, lambda h: 1.5 * h)
    )
    torch.testing.assert_close(copies.ntk, written.ntk, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("function", "written"),
    [
        (lambda z: 2 * torch.erf(z / 2), lambda z: torch.erf(0.5 * z) * 2),
        (lambda z: z + z, lambda z: 2 * z),
        (lambda z: z * torch.sigmoid(z), lambda z: nn.functional.silu(z)),
        (lambda z: (z.abs() + z) / 2, lambda z: torch.relu(z)),
        (lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: nn.functional.leaky_relu(z, 0.1)),
        (lambda z: torch.relu(torch.tanh(torch.relu(z))), lambda z: torch.tanh(torch.relu(z))),
        (lambda z: -torch.maximum(-z, z * 0), lambda z: -torch.relu(-z)),
        (lambda z: 1 - 2 * torch.sigmoid(-2 * z), lambda z: torch.tanh(z)),
    ],
)
def test_ways_to_write_one_activation(function, written) -> None:
    x1, x2 = inputs(4, 5), inputs(3, 5)
    layers = dense(5, 4), dense(4, 1)
    one, two = (infinite_width(Net(lambda x, a, c, f=f: c(f(a(x))), *layers))(x1, x2) for f in (function, written))
    torch.testing.assert_close(one.nngp, two.nngp, rtol=1e-8, atol=0)
    torch.testing.assert_close(one.ntk, two.ntk, rtol=1e-8, atol=0)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_residual_networks_against_finite_ones(norm) -> None:
    width, draws = 192, 10
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    net = resnet(3, width, 1, 1, norm=norm, stages=2, branch_scale=0.7, b_std=0.2).double()
    limit = infinite_width(net)(x).ntk
    ntk = []
    for _ in range(draws):
        for layer in net.modules():
            if isinstance(layer, Linear | Conv2d):
                layer.reset_parameters()
        ntk.append(empirical(net, {n: p.detach() for n, p in net.named_parameters()}, x, x))
    sample = torch.stack(ntk)
    error = sample.std(0) / math.sqrt(draws)
    # Six layers deep: a bias of order depth / width beside the scatter.
    assert ((sample.mean(0) - limit).abs() < 5 * error + 3 * 6 / width * limit.max()).all()
    assert (error < 0.1 * limit.max()).all()
