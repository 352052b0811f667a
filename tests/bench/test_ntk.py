"""The empirical NTK against a plain Jacobian, one autograd call a sample and output, in float64.

Errors are relative to the largest entry. An entry is a sum of some 1e3 products, each of a few roundings of 1e-16:
below 1e-12 with a margin of ten.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ntk_networks import brute_force, inputs, networks
from torch import Tensor, nn
from torch.nn import functional as F

from bench.ntk import empirical_ntk, explain, products, tiles
from bench.ntk.plan import Form
from models.layers import Linear
from models.mlp import mlp

EXACT = 1e-12
NETWORKS = networks()


def error(kernel: Tensor, expected: Tensor) -> float:
    assert kernel.shape == expected.shape
    return float((kernel - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    net, shape = NETWORKS[request.param]
    x = inputs(request.param, shape, 9)
    return net, x[:5], x[5:]


def test_every_entry_is_the_brute_force_one(case):
    net, x1, x2 = case
    for one, two in ((x1, x2), (x1, None), (x1[:1], x2[:3])):
        expected = brute_force(net, one, one if two is None else two)
        assert error(empirical_ntk(net, one, two), expected) < EXACT
        # With a budget named, tile by tile.
        assert error(empirical_ntk(net, one, two, memory=2**23), expected) < EXACT
    torch.testing.assert_close(empirical_ntk(net, x1), empirical_ntk(net, x1).permute(1, 0, 3, 2), rtol=0, atol=0)


def test_other_outputs_follow_from_the_full_kernel(case):
    net, x1, x2 = case
    full = brute_force(net, x1, x2)
    wanted = {"trace": full.diagonal(dim1=2, dim2=3).sum(-1), "sum": full.sum((2, 3)), 0: full[:, :, 0, 0]}
    for outputs, kernel in {**wanted, -1: full[:, :, -1, -1]}.items():
        assert error(empirical_ntk(net, x1, x2, outputs=outputs), kernel) < EXACT


def test_shares_of_the_layers_sum_to_the_kernel(case):
    net, x1, x2 = case
    shares = empirical_ntk(net, x1, x2, by_layer=True)
    assert list(shares) == list(
        dict.fromkeys(name.rpartition(".")[0] for name, p in net.named_parameters() if p.requires_grad)
    )
    total = brute_force(net, x1, x2)
    assert error(sum(shares.values()), total) < EXACT
    for module, share in shares.items():  # each is the kernel of a network in which all else is frozen
        others = {n: p.requires_grad for n, p in net.named_parameters() if n.rpartition(".")[0] != module}
        for name in others:
            net.get_parameter(name).requires_grad_(False)
        expected = brute_force(net, x1, x2)
        for name, trained in others.items():
            net.get_parameter(name).requires_grad_(trained)
        assert float((share - expected).abs().max()) < EXACT * float(total.abs().max()), module


def test_members_are_separate_networks(case):
    net, x1, x2 = case
    params = {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in net.named_parameters()}
    kernels = empirical_ntk(net, x1, x2, params=params)
    assert error(kernels[0], brute_force(net, x1, x2)) < EXACT
    originals = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)
    expected = brute_force(net, x1, x2)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(originals[name])
    assert error(kernels[1], expected) < EXACT


def test_the_jacobian_method_agrees(case):
    net, x1, x2 = case
    for outputs in ("full", "trace", "sum", 0):
        expected = empirical_ntk(net, x1, x2, outputs=outputs)
        assert error(empirical_ntk(net, x1, x2, outputs=outputs, method="jacobian"), expected) < EXACT


def test_rules_are_used_where_they_hold():
    """Otherwise all tests above would pass by per-sample gradients alone."""
    sampled = {
        "transposed convolution": {"0.weight", "0.bias"},
        "one dimension": {"0.weight", "0.bias"},
        "token": {"first", *(f"block.self_attn.{p}" for p in ("in_proj_weight", "in_proj_bias"))}
        | {f"block.self_attn.out_proj.{p}" for p in ("weight", "bias")},
        "weight norm": {f"0.parametrizations.weight.original{i}" for i in (0, 1)},
        "scaled": {"third"},
        "unusual": {"first.weight", "hidden.weight"},
        "tokens first": {f"{m}.{p}" for m in ("folded", "shared") for p in ("weight", "bias")},
        "recurrent": {f"lstm.{p}_{q}_l0" for p in ("weight", "bias") for q in ("ih", "hh")},
        "concealed": {"weight"},
    }
    sampled["token tied"] = sampled["token"] | {"words.weight"}
    for name, (net, shape) in NETWORKS.items():
        x = inputs(name, shape, 9)
        if name != "tokens first":  # there only the pass itself shows that the first axis is not the samples'
            assert set(explain(net, x, method="layerwise").sampled) == sampled.get(name, set()), name
        else:
            assert set(explain(net, x, method="layerwise").sampled) >= sampled[name]


def test_the_cheaper_form_is_chosen_and_explained():
    def forms(net: nn.Module, x: Tensor) -> list[str]:
        return [str(part.form) for part in explain(net, x).parts]

    few, many = torch.randn(50, 64, 2, 2), torch.randn(50, 64, 16, 16)
    # 4 positions: pairs cost 16 (576 + 64) for 576 x 64 parameters; 256 positions: 65,536 (576 + 64).
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert forms(net, few) == ["pairs"]
    assert forms(net, many) == ["gradients"]
    assert "0.weight, 0.bias  pairs" in str(explain(net, few))
    assert "4 positions" in str(explain(net, torch.randn(50, 64, 16, 16))) or "256 positions" in str(explain(net, many))


class Meeting(nn.Module):
    """Four channels of four rows and columns, which meet before the read-out though no shape tells."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.read, self.meet = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3), meet

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.read(self.meet(z, torch.tanh(z)))


MEETINGS = {
    "sum over channels": lambda z, h: h.sum(1).mean(-1),
    "transposed": lambda z, h: h.transpose(1, 2).mean((2, 3)),
    "pooled over channels": lambda z, h: F.avg_pool2d(h.mean(-1), (3, 1), 1, (1, 0)).mean(-1),
    "normalised": lambda z, h: F.group_norm(h, 2).mean((2, 3)),
    "sideways": lambda z, h: h.mean((2, 3)) + z.sum(1).mean(-1),
    "softmax": lambda z, h: h.softmax(1).mean((2, 3)),
    "flipped": lambda z, h: (h + z.flip(1)).mean((2, 3)),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_channels_that_meet_before_the_read_out_are_seen(name):
    torch.manual_seed(0)
    net, x = Meeting(MEETINGS[name]).double(), torch.randn(6, 3, 4, 4, dtype=torch.float64)
    assert all(part.form is not Form.CHANNELS for part in explain(net, x).parts)
    assert error(empirical_ntk(net, x), brute_force(net, x, x)) < EXACT


def test_channels_that_meet_only_in_the_read_out_share_gradients():
    net, shape = NETWORKS["channelwise"]
    x = inputs("channelwise", shape, 9)
    forms = {part.module: part.form for part in explain(net, x).parts}
    assert [name for name, form in forms.items() if form is Form.CHANNELS] == ["second", "beside"]
    assert all(part.form is not Form.CHANNELS for part in explain(net, x, outputs="sum").parts)  # nothing to share
    for workspace in (1, 10**9):  # channel by channel, and all at once
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "WORKSPACE", workspace)
            assert error(empirical_ntk(net, x), brute_force(net, x, x)) < EXACT


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_convolutions(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    size = [draw(st.integers(3, 7)), draw(st.integers(3, 7))]
    kernel = [draw(st.integers(1, min(3, side))) for side in size]
    dilation = [
        1 if k == 1 else draw(st.integers(1, (side - 1) // (k - 1))) for k, side in zip(kernel, size, strict=True)
    ]
    channels = groups * draw(st.sampled_from([1, 3, 17]))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = nn.Conv2d(
        channels, groups * draw(st.integers(1, 3)), kernel, stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))), dilation=dilation, groups=groups,
        bias=draw(st.booleans()),
    )  # fmt: skip
    net = nn.Sequential(
        layer, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layer.out_channels, 2)
    ).double()
    x = torch.randn(draw(st.integers(1, 6)), channels, *size, dtype=torch.float64)
    assert error(empirical_ntk(net, x), brute_force(net, x, x)) < EXACT


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 2)},
    ],
)
def test_large_images_in_float32(groups, outputs, options):
    """They take another path on a CPU. Error: 300 positions times 6e-8, most of it cancelling."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, groups=groups, **options), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten())
    x = torch.randn(4, 4, 21, 20)
    net.append(nn.Linear(net(x).shape[1], outputs))
    kernel = empirical_ntk(net, x)
    assert error(kernel.double(), brute_force(net.double(), x.double(), x.double())) < 1e-5


@pytest.mark.parametrize("onednn", [False, True])
def test_scales_of_weights_and_biases_in_large_float32_products(monkeypatch, onednn):
    """With AVX-512 these take another path, where a bias std of .3 counts .09. Error: 200 products of 6e-8 each."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(products, "AVAILABLE", onednn)
    torch.manual_seed(0)
    layers = [Linear(40, 48, w_std=0.7, b_std=0.3), nn.Tanh(), Linear(48, 48, w_std=1.3, b_std=0.2), nn.Tanh()]
    net = nn.Sequential(*layers, Linear(48, 1, b_std=0.6))
    x = torch.randn(180, 40)
    kernel = empirical_ntk(net, x)
    assert error(kernel.double(), empirical_ntk(net.double(), x.double(), method="jacobian")) < 1e-5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_dense_networks(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    widths = [draw(st.integers(1, 9)) for _ in range(draw(st.integers(1, 4)))]
    positions = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 2)))]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=draw(st.booleans())), nn.Tanh()]
    read = nn.Linear(widths[-1] * int(torch.tensor(positions).prod()), draw(st.integers(1, 3)))
    net = nn.Sequential(*layers, nn.Flatten(), read).double()
    n1, n2 = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    x = torch.randn(n1 + n2, *positions, widths[0], dtype=torch.float64)
    assert error(empirical_ntk(net, x[:n1], x[n1:]), brute_force(net, x[:n1], x[n1:])) < EXACT


def test_float32_away_from_kinks(case):
    """Smooth networks only: 1e3 terms of relative error 6e-8 each, most of them cancelling."""
    net, x1, x2 = case
    if any(isinstance(m, nn.ReLU | nn.TransformerEncoderLayer | nn.MaxPool2d) for m in net.modules()):
        pytest.skip("a mask that flips between the precisions moves its sample's entries by 1 / width")
    expected = brute_force(net, x1, x2)
    params = {name: p.detach().float()[None] for name, p in net.named_parameters()}
    kernel = empirical_ntk(net, x1, x2, params=params, dtype=torch.float32)[0]
    assert kernel.dtype == torch.float32
    assert error(kernel.double(), expected) < 1e-5


def test_calling_it_leaves_the_network_as_it_was(case):
    net, x1, _ = case
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    wanted = [p.requires_grad for p in net.parameters()]
    with torch.no_grad():  # nor does the caller's mode matter
        empirical_ntk(net, x1)
    assert wanted == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_float64_on_request_from_a_float32_network():
    net = mlp(5, 8, 2, 3, activation="tanh", b_std=0.3)
    x = torch.randn(6, 5)
    kernel = empirical_ntk(net, x, dtype=torch.float64)
    assert error(kernel, brute_force(net.double(), x.double(), x.double())) < EXACT


class Batch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(
    ("net", "options", "sentence"),
    [
        (nn.Linear(2, 3), {"outputs": "mean"}, "outputs must be 'full', 'trace', 'sum' or the number of an output"),
        (nn.Linear(2, 3), {"outputs": 3}, "outputs must be below 3, the number of outputs of net, not 3."),
        (nn.Linear(2, 3), {"method": "fast"}, "method must be one of auto, "),
        (nn.Linear(2, 3), {"dtype": torch.int32}, "dtype must be a floating-point type"),
        (nn.Linear(2, 3), {"params": {"weight": torch.ones(1, 3, 2)}}, "params lacks 'bias'"),
        (nn.Linear(2, 3), {"x2": torch.ones(2, 3)}, "x1 and x2 must agree in all axes but the first"),
        (nn.Linear(2, 3), {"x2": torch.ones(0, 2)}, "x2 must hold at least one sample"),
        (nn.Linear(2, 3).requires_grad_(False), {}, "net has no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), {}, "1 (batch normalisation in train mode) makes samples"),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), {}, " (batch normalisation in train mode) makes samples"),
        (nn.Sequential(nn.Linear(2, 3), Batch()), {}, "Batch normalisation in train mode makes samples interact"),
        (nn.Sequential(nn.Linear(2, 3), nn.Dropout()), {}, "1 (dropout in train mode) makes the network random"),
        (nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)), {}, "net must map [n, *shape] to [n, c]; 3 samples gave [9]."),
    ],
)
def test_bad_input_gets_one_sentence(net, options, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        empirical_ntk(net, torch.randn(4, 2), **options)
    assert str(caught.value).startswith(sentence)


def test_products_in_float32():
    """Large enough for oneDNN on a CPU. Error: 200 products of 6e-8, most of it cancelling."""
    torch.manual_seed(0)
    layers = [nn.Linear(40, 200), nn.Tanh(), nn.Linear(200, 200, bias=False), nn.Sigmoid(), nn.Linear(200, 200)]
    net = nn.Sequential(*layers, nn.Tanh(), nn.Linear(200, 3))
    layers[4].weight.requires_grad_(False)
    x = torch.randn(180, 40)
    kernels = {outputs: empirical_ntk(net, x, outputs=outputs) for outputs in ("full", "trace", 1)}
    sides = empirical_ntk(net, x, x[:150])
    net.double()
    for outputs, kernel in kernels.items():
        assert error(kernel.double(), empirical_ntk(net, x.double(), outputs=outputs, method="jacobian")) < 1e-5
    assert error(sides, kernels["full"][:, :150]) < 1e-5
