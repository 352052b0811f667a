"""Attention with logits q . k / d: against finite networks, a written-out recursion, and other ways to write it."""

import math

import numpy as np
import pytest
import torch
from limit_references import arc_cosine
from torch import nn
from torch.nn import functional

from models.attention import SelfAttention
from models.layers import Conv2d, Linear
from models.limits import NoInfiniteWidthLimit, check_rule, infinite_width
from models.limits.infinite import LIVE
from tests.one_device import OneDevice

TOKENS = 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Written(nn.Module):
    """Attention as `function` writes it, of four layers of its own and their width."""

    def __init__(self, function, width: int, fan_in: int | None = None) -> None:
        super().__init__()
        self.function, self.width = function, width
        first = [Linear(fan_in or width, width, 1.5, 0.2) for _ in range(3)]
        self.layers = nn.ModuleList([*first, Linear(width, width, 1.5, 0.2)])
        self.softmax = nn.Softmax(-1)
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS, dtype=torch.float64).triu(1) > 0)
        self.register_buffer("graph", torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, -0.5], [0.2] * 4]).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x, *self.layers)


def tied(net, x, a, b, c, d):
    return torch.softmax((q := a(x)) @ q.mT / net.width, -1) @ b(x)


def independent(net, x, a, b, c, d):
    return torch.softmax(a(x) @ c(x).transpose(1, 2) / net.width, -1) @ b(x)


def residual(net, x, a, b, c, d):
    return x + d(torch.softmax(2 * (q := a(x)) @ q.mT / q.shape[-1], -1) @ b(x))


def one_for_all(net, x, a, b, c, d):
    return torch.softmax(torch.bmm(q := a(x), q.permute(0, 2, 1)).div(net.width), 2) @ q


def causal(net, x, a, b, c, d):
    return functional.scaled_dot_product_attention(q := a(x), q, b(x), is_causal=True, scale=1 / net.width)


def activated(net, x, a, b, c, d):
    return torch.relu(torch.softmax((q := torch.relu(a(x))) @ q.mT / net.width, -1) @ b(x))


def normalised(net, x, a, b, c, d):
    return torch.softmax((q := functional.layer_norm(a(x), (net.width,))) @ q.mT / net.width, -1) @ b(x)


def graph(net, x, a, b, c, d):
    return torch.matmul(net.graph, torch.relu(b(x)))


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (tied, False),
        (independent, True),
        (residual, False),
        (one_for_all, True),
        (causal, False),
        (activated, False),
        (normalised, False),
        (graph, False),
    ],
)
def test_against_finite_networks(function, activation) -> None:
    check_rule(lambda w: Written(function, w), (TOKENS,), 64, 100, activation, channels_last=True)


@pytest.mark.slow
def test_linear_attention_against_finite_networks() -> None:
    # Without a softmax the kernels grow with the sixth power of the weights, and scatter more: wider, and more draws.
    def linear(net, x, a, b, c, d):
        return (q := a(x)) @ q.transpose(-1, -2) / net.width @ b(x)

    check_rule(lambda w: Written(linear, w), (TOKENS,), 96, 300, channels_last=True)


class Block(nn.Module):
    """A transformer's block, normalised first, without dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, 2, w_std=1.4, b_std=0.2)
        self.perceptron = nn.Sequential(Linear(width, width, 1.4), nn.GELU(), Linear(width, width, 1.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        return x + self.perceptron(self.between(x))


@pytest.mark.parametrize("activation", [False, True])
def test_a_block_against_finite_networks(activation) -> None:
    check_rule(Block, (TOKENS,), 64, 60, activation, channels_last=True)


class Patches(nn.Module):
    """Attention among the patches of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches, self.flatten = Conv2d(width, width, 2, 2), nn.Flatten(2)
        self.attention = SelfAttention(width, 1, w_std=1.4, b_std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.flatten(self.patches(x)).transpose(1, 2))
        return (h + self.attention(h)).mean(1)


def test_patches_against_finite_networks() -> None:
    check_rule(Patches, (4, 4), 64, 60)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_written_out() -> None:
    n, width = 3, 8
    x = torch.randn(n, TOKENS, 5, dtype=torch.float64)
    net = nn.Sequential(Linear(5, width, 1.2, 0.3), nn.ReLU(), Written(tied, width), nn.ReLU(), nn.Flatten())
    net.append(Linear(TOKENS * width, 1, 0.9))
    limit = infinite_width(net)(x)
    tokens = x.numpy().reshape(n * TOKENS, 5)
    k = 1.44 * tokens @ tokens.T / 5 + 0.09
    value, slope = arc_cosine(np.diag(k), k, np.diag(k))
    t = slope * k
    layer = 2.25 * value + 0.04  # of queries and of values
    weights = np.zeros((n * TOKENS, n * TOKENS))
    for i in range(n):
        own = slice(i * TOKENS, (i + 1) * TOKENS)
        weights[own, own] = _softmax(layer[own, own])
    k = weights @ layer @ weights.T
    t = weights @ (2.25 * (t + value) + 0.04) @ weights.T
    value, slope = arc_cosine(np.diag(k), k, np.diag(k))
    t = slope * t + value
    # Flattened: the mean over equal positions.
    same = [m.reshape(n, TOKENS, n, TOKENS).trace(axis1=1, axis2=3) / TOKENS for m in (value, t)]
    # arccos loses half of the digits where two tokens agree
    np.testing.assert_allclose(limit.nngp.numpy(), 0.81 * same[0], rtol=1e-10)
    np.testing.assert_allclose(limit.ntk.numpy(), 0.81 * same[1], rtol=1e-7)


WAYS = {
    "size": lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ q.mT / q.size(-1), -1) @ b(x),
    "sizes": lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ q.mT * x.shape[1] / (4 * q.shape[2]), 2) @ b(x),
    "fused": lambda net, x, a, b, c, d: functional.scaled_dot_product_attention(
        q := a(x), q, b(x), scale=1 / net.width
    ),
    "queries scaled": lambda net, x, a, b, c, d: ((q := a(x)) / net.width @ q.transpose(2, 1)).softmax(dim=-1) @ b(x),
    "module": lambda net, x, a, b, c, d: net.softmax((q := a(x)) @ q.mT / net.width) @ b(x),
    "by hand": lambda net, x, a, b, c, d: (
        (e := torch.exp((q := a(x)) @ q.mT / net.width)) / e.sum(-1, keepdim=True) @ b(x)
    ),
    "columns": lambda net, x, a, b, c, d: (
        b(x).mT @ torch.softmax((q := a(x)) @ q.mT / net.width, -1).transpose(1, 2)
    ).transpose(1, 2),
    "a mask of nothing": lambda net, x, a, b, c, d: (
        torch.softmax(((q := a(x)) @ q.mT / net.width).masked_fill(net.mask & ~net.mask, -math.inf), -1) @ b(x)
    ),
}


def networks(function, width: int = 9) -> nn.Module:
    return nn.Sequential(Written(function, width, 3), nn.ReLU(), nn.Flatten(), Linear(TOKENS * width, 1)).double()


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_it(way) -> None:
    x1, x2 = torch.randn(3, TOKENS, 3, dtype=torch.float64), torch.randn(2, TOKENS, 3, dtype=torch.float64)
    limit, expected = (infinite_width(networks(f))(x1, x2) for f in (WAYS[way], tied))
    torch.testing.assert_close(limit.nngp, expected.nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(limit.ntk, expected.ntk, rtol=1e-12, atol=0)


def test_a_mask_is_causal_attention() -> None:
    def masked(net, x, a, b, c, d):
        return torch.softmax(((q := a(x)) @ q.mT / net.width).masked_fill(net.mask, -math.inf), -1) @ b(x)

    x = torch.randn(3, TOKENS, 3, dtype=torch.float64)
    limit, expected = (infinite_width(networks(f))(x) for f in (masked, causal))
    torch.testing.assert_close(limit.ntk, expected.ntk, rtol=1e-12, atol=0)
    assert (limit.ntk - infinite_width(networks(tied))(x).ntk).abs().max() > 1e-2


def test_independent_keys_average() -> None:
    x = torch.randn(3, TOKENS, 3, dtype=torch.float64)
    limit = infinite_width(networks(independent))(x)
    average = infinite_width(networks(lambda net, x, a, b, c, d: net.graph.new_ones(4, 4) / 4 @ b(x)))(x)
    torch.testing.assert_close(limit.ntk, average.ntk, rtol=1e-13, atol=0)


def test_our_layer_is_what_it_says() -> None:
    def written(net, x, a, b, c, d):
        return d(torch.softmax((q := a(x)) @ q.mT / net.width, -1) @ b(x))

    x = torch.randn(3, TOKENS, 6, dtype=torch.float64)
    ours = nn.Sequential(SelfAttention(6, 2, w_std=1.5, b_std=0.2), nn.ReLU(), nn.Flatten(), Linear(24, 1))
    limit, expected = (
        infinite_width(ours)(x),
        infinite_width(nn.Sequential(Written(written, 6), nn.ReLU(), nn.Flatten(), Linear(24, 1)))(x),
    )
    torch.testing.assert_close(limit.ntk, expected.ntk, rtol=1e-13, atol=0)
    # One head of the finite layer, written out.
    layer = SelfAttention(6, 1, tied=False).double()
    queries, keys, values = layer.queries(x), layer.keys(x), layer.values(x)
    torch.testing.assert_close(layer(x), layer.output(torch.softmax(queries @ keys.mT / 6, -1) @ values))


@pytest.mark.parametrize("function", [tied, independent, residual, causal, graph])
def test_symmetric_tiled_and_on_one_device(function) -> None:
    x = torch.randn(9, TOKENS, 3, dtype=torch.float64)
    rows, phi = (3, nn.Identity()) if function is graph else (TOKENS, nn.ReLU())
    net = nn.Sequential(Linear(3, 9), Written(function, 9), phi, nn.Flatten(), Linear(rows * 9, 1)).double()
    limit = infinite_width(net)
    whole, cross, tiled = limit(x), limit(x, x.clone()), limit(x, memory=LIVE * 8 * TOKENS**4)
    for kernel, other, parts in zip(whole[:2], cross[:2], tiled[:2], strict=True):
        assert torch.equal(kernel, kernel.T)
        # arccos of nearly equal tokens in the cross case
        torch.testing.assert_close(kernel, other, rtol=1e-7, atol=0)
        torch.testing.assert_close(kernel, parts, rtol=1e-11, atol=0)
        assert torch.linalg.eigvalsh(kernel)[0] > -1e-12
    with OneDevice() as mode:
        found = infinite_width(net.to("meta"))(x.to("meta"), x.to("meta"))
        assert found.ntk.device.type == "meta"
    assert mode.seen > 10


def test_weights_of_the_input_alone() -> None:
    def nearest(net, x, a, b, c, d):
        return torch.softmax(x @ x.mT / 3, -1) @ b(x)

    x = torch.randn(3, TOKENS, 3, dtype=torch.float64)
    limit = infinite_width(nn.Sequential(Written(nearest, 9, 3), nn.Flatten(), Linear(TOKENS * 9, 1)).double())(x)
    weights = torch.softmax(x @ x.mT / 3, -1)
    mixed = weights @ x
    expected = (2.25 * torch.einsum("iad,jad->ij", mixed, mixed) / 3) / TOKENS + 0.04
    torch.testing.assert_close(limit.nngp, expected, rtol=1e-12, atol=0)


REFUSED = [
    (
        lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ q.mT / net.width**0.5, -1) @ b(x),
        "the attention weights stay random where products of queries and keys are scaled by 0.333",
    ),
    (
        lambda net, x, a, b, c, d: functional.scaled_dot_product_attention(a(x), c(x), b(x)),
        "the attention weights stay random where products of queries and keys are scaled by 0.333",
    ),
    (lambda net, x, a, b, c, d: torch.softmax(a(x) @ c(x).mT, -1) @ b(x), "are scaled by 1, as 1 / sqrt"),
    (
        lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ torch.relu(q).mT / net.width, -1) @ b(x),
        "queries and keys must be one tensor, or independent layers of their own",
    ),
    (lambda net, x, a, b, c, d: torch.softmax(a(x) @ c(x) / net.width, -1) @ b(x), "multiplies branches, which has a"),
    (
        lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ q.mT / net.width * (q @ q.mT).tanh(), -1) @ b(x),
        "combines attention weights with something else than numbers",
    ),
    (
        lambda net, x, a, b, c, d: functional.dropout(torch.softmax((q := a(x)) @ q.mT / net.width, -1), 0.5) @ b(x),
        "attention weights must not be random: call .eval()",
    ),
    (
        lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ q.mT / net.width, 0) @ b(x),
        "attention weights must be those of each sample alone, not of the batch",
    ),
    (
        lambda net, x, a, b, c, d: torch.softmax((q := a(x)) @ q.mT / net.width, -1),
        "'3' (Linear) takes attention weights: it must take the values",
    ),
]


@pytest.mark.parametrize(("function", "sentence"), REFUSED)
def test_refused(function, sentence) -> None:
    with pytest.raises(NoInfiniteWidthLimit) as caught:
        infinite_width(networks(function))(torch.randn(2, TOKENS, 3))
    assert sentence in str(caught.value)


def test_bad_layers() -> None:
    with pytest.raises(ValueError, match="heads must divide the features, 6, not 4"):
        SelfAttention(6, 4)
    with pytest.raises(NoInfiniteWidthLimit, match="heads of one feature, whose logits stay random"):
        infinite_width(nn.Sequential(SelfAttention(3, 3), nn.Flatten(), Linear(12, 1)))
