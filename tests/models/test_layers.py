import math

import pytest
import torch
from torch import fx
from torch.func import functional_call, vmap
from torch.nn import functional

from models.activations import ACTIVATIONS, activation
from models.layers import Conv2d, Linear


def test_linear_ntk_is_the_written_formula() -> None:
    layer = Linear(5, 3, w_std=1.7, b_std=0.4)
    x = torch.randn(2, 5)
    expected = torch.stack([1.7 / math.sqrt(5) * layer.weight @ row + 0.4 * layer.bias for row in x])
    torch.testing.assert_close(layer(x), expected)


def test_linear_standard_is_torch_linear() -> None:
    layer = Linear(5, 3, b_std=0.4, parameterization="standard")
    x = torch.randn(2, 5)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("parameterization", "w_std", "b_std"), [("ntk", 1.0, 1.0), ("standard", 3 / math.sqrt(400), 0.5)]
)
def test_initial_standard_deviations(parameterization, w_std, b_std) -> None:
    torch.manual_seed(0)
    layer = Linear(400, 4000, w_std=3.0, b_std=0.5, parameterization=parameterization)
    # The relative standard error of a standard deviation from m draws is 1 / sqrt(2 m).
    assert layer.weight.std().item() == pytest.approx(w_std, rel=5 / math.sqrt(2 * 400 * 4000))
    assert layer.bias.std().item() == pytest.approx(b_std, rel=5 / math.sqrt(2 * 4000))


def test_reset_parameters_follows_the_global_generator() -> None:
    torch.manual_seed(3)
    layer = Linear(4, 4, b_std=1.0)
    first = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, first)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(layer.weight, first)


def test_no_bias_without_b_std() -> None:
    assert Linear(2, 2).bias is None
    assert Linear(2, 2, b_std=0.0).bias is not None
    assert dict(Conv2d(2, 2, 3).named_parameters()).keys() == {"weight"}


def _convolution_by_hand(layer: Conv2d, x: torch.Tensor, sides: tuple[int, int, int, int], mode: str) -> torch.Tensor:
    """Loops over output pixels and kernel entries; sides: left, right, top, bottom."""
    left, right, top, bottom = sides
    height, width = x.shape[-2:]
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    cols = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    weight = layer.weight
    if layer.parameterization == "ntk":
        weight = weight * layer.w_std / math.sqrt(weight[0].numel())
    y = torch.zeros(len(x), layer.out_channels, rows, cols)
    for i in range(rows):
        for j in range(cols):
            for a in range(kh):
                for b in range(kw):
                    r, c = i * sh + a * dh - top, j * sw + b * dw - left
                    if mode == "circular":
                        r, c = r % height, c % width
                    if 0 <= r < height and 0 <= c < width:
                        y[:, :, i, j] += x[:, :, r, c] @ weight[:, :, a, b].T
    if layer.bias is not None:
        y += (layer.b_std * layer.bias if layer.parameterization == "ntk" else layer.bias)[:, None, None]
    return y


@pytest.mark.parametrize(
    ("kernel", "options", "sides"),
    [
        (3, {}, (0, 0, 0, 0)),
        (3, {"padding": "valid", "parameterization": "standard"}, (0, 0, 0, 0)),
        (3, {"padding": "same"}, (1, 1, 1, 1)),
        ((2, 3), {"padding": "same"}, (1, 1, 0, 1)),
        ((2, 3), {"padding": "same", "padding_mode": "circular"}, (1, 1, 0, 1)),
        (3, {"padding": (2, 1), "stride": (2, 1)}, (1, 1, 2, 2)),
        ((3, 2), {"padding": (2, 1), "padding_mode": "circular", "stride": 2}, (1, 1, 2, 2)),
        (3, {"padding": "same", "dilation": (1, 2), "padding_mode": "circular"}, (2, 2, 1, 1)),
    ],
)
def test_convolution_against_loops(kernel, options, sides) -> None:
    layer = Conv2d(2, 3, kernel, w_std=1.3, b_std=0.7, **options)
    x = torch.randn(2, 2, 5, 6)
    expected = _convolution_by_hand(layer, x, sides, options.get("padding_mode", "zeros"))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Linear(4, 3, 1.2, 0.3), (5, 4)),
        (Linear(4, 3, 1.2, None, "standard"), (5, 4)),
        (Conv2d(2, 3, 3, padding="same", b_std=0.3), (5, 2, 4, 4)),
        (Conv2d(2, 3, (2, 3), padding="same", padding_mode="circular", b_std=0.3), (5, 2, 4, 4)),
    ],
    ids=str,
)
def test_members_by_vmap_equal_members_one_by_one(layer, shape) -> None:
    stacked = {name: torch.randn(3, *p.shape) for name, p in layer.named_parameters()}
    x = torch.randn(shape)
    together = vmap(lambda params: functional_call(layer, params, (x,)))(stacked)
    for member in range(3):
        alone = functional_call(layer, {name: p[member] for name, p in stacked.items()}, (x,))
        torch.testing.assert_close(together[member], alone)


def test_layers_can_be_traced() -> None:
    net = torch.nn.Sequential(Conv2d(1, 2, 3, padding="same", padding_mode="circular"), torch.nn.ReLU())
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Linear(0, 3), "in_features must be an integer of at least 1, not 0."),
        (lambda: Linear(3, -1), "out_features must be an integer of at least 1, not -1."),
        (lambda: Linear(3, 2.5), "out_features must be an integer of at least 1, not 2.5."),
        (lambda: Linear(3, 3, w_std=-1.0), "w_std must be a finite number of at least 0, not -1.0."),
        (lambda: Linear(3, 3, b_std=math.nan), "b_std must be a finite number of at least 0, not nan."),
        (
            lambda: Linear(3, 3, parameterization="nkt"),
            "Unknown parameterization 'nkt'. Did you mean 'ntk'? Available: ntk, standard.",
        ),
        (lambda: Conv2d(1, 1, 0), "kernel_size must be an integer of at least 1, not 0."),
        (lambda: Conv2d(1, 1, (3, 3, 3)), "kernel_size must be an integer or a pair of integers, not (3, 3, 3)."),
        (lambda: Conv2d(1, 1, 3, padding=-1), "padding must be an integer of at least 0, not -1."),
        (lambda: Conv2d(1, 1, 3, padding="sme"), "Unknown padding 'sme'. Did you mean 'same'? Available: same, valid."),
        (lambda: Conv2d(1, 1, 3, 2, padding="same"), "padding='same' needs stride 1, not (2, 2)."),
        (
            lambda: Conv2d(1, 1, 3, padding_mode="reflect"),
            "Unknown padding_mode 'reflect'. Available: zeros, circular.",
        ),
        (lambda: activation("rleu"), "Unknown activation 'rleu'. Did you mean 'relu'? Available: relu, leaky_relu, "),
    ],
)
def test_bad_input_gets_one_sentence(make, sentence) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        make()
    assert str(caught.value).startswith(sentence)


def test_our_activations_compute_what_their_names_say() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    reference = {
        "erf": math.erf,
        "sin": math.sin,
        "cos": math.cos,
        "abs": abs,
        "square": lambda z: z * z,
        "sign": lambda z: (z > 0) - (z < 0),
        "step": lambda z: z > 0,
        "tanh": math.tanh,
        "softsign": lambda z: z / (1 + abs(z)),
        "identity": float,
    }
    for name, function in reference.items():
        expected = torch.tensor([float(function(z)) for z in x.tolist()], dtype=torch.float64)
        torch.testing.assert_close(activation(name)(x), expected)


def test_every_activation_keeps_shape_and_dtype() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    for name in ACTIVATIONS:
        y = activation(name)(x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype), name
