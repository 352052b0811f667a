import inspect
import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from models.cnn import cnn
from models.layers import Conv2d, Linear
from models.mlp import mlp
from models.resnet import resnet

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"


def test_mlp_is_the_written_formula() -> None:
    net = mlp(6, 8, 2, 3, activation="tanh", w_std=1.2, b_std=0.3, readout_w_std=0.9, readout_b_std=0.1)
    first, second, readout = [layer for layer in net if isinstance(layer, Linear)]
    x = torch.randn(4, 2, 3)
    h = torch.tanh(1.2 / math.sqrt(6) * x.flatten(1) @ first.weight.T + 0.3 * first.bias)
    h = torch.tanh(1.2 / math.sqrt(8) * h @ second.weight.T + 0.3 * second.bias)
    expected = 0.9 / math.sqrt(8) * h @ readout.weight.T + 0.1 * readout.bias
    torch.testing.assert_close(net(x), expected)


def test_mlp_of_depth_0_is_linear() -> None:
    net = mlp(4, 7, 0, 2)
    assert [type(layer) for layer in net] == [nn.Flatten, Linear]
    assert net[1].weight.shape == (2, 4)


def test_mlp_defaults() -> None:
    net = mlp(4, 7, 1, 2)
    assert isinstance(net[2], nn.ReLU)
    assert (net[1].w_std, net[1].b_std, net[3].w_std, net[3].b_std) == (2**0.5, 0.0, 1.0, None)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_cnn_shapes_and_fan_in(parameterization) -> None:
    x = torch.randn(2, 3, 6, 6)
    flat = cnn(3, 5, 2, 4, image_size=6, parameterization=parameterization)
    pooled = cnn(3, 5, 2, 4, readout="gap", parameterization=parameterization)
    assert flat(x).shape == pooled(x).shape == (2, 4)
    assert flat[-1].in_features == 5 * 36
    assert pooled[-1].in_features == 5
    assert [layer.fan_in for layer in flat if isinstance(layer, Conv2d)] == [27, 45]


def test_gap_averages_pixels_before_the_readout() -> None:
    net = cnn(1, 4, 1, 2, activation="erf", readout="gap", readout_b_std=0.5)
    x = torch.randn(3, 1, 5, 5)
    features = torch.erf(net[0](x)).mean((2, 3))
    torch.testing.assert_close(net(x), net[-1](features))


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_resnet_is_the_written_formula(norm) -> None:
    net = resnet(2, 3, 1, 4, activation="erf", norm=norm, stages=2, branch_scale=0.6, b_std=0.2)
    x = torch.randn(5, 2, 6, 6)
    h = net[0](x)

    def normal(h: torch.Tensor) -> torch.Tensor:
        if norm == "none":
            return h
        mean, variance = h.mean((1, 2, 3), keepdim=True), h.var((1, 2, 3), unbiased=False, keepdim=True)
        return (h - mean) / (variance + 1e-5).sqrt()

    for block in net[1:3]:
        convolutions = [layer for layer in block.branch if isinstance(layer, Conv2d)]
        branch = convolutions[1](torch.erf(normal(convolutions[0](torch.erf(normal(h))))))
        h = block.shortcut(h) + 0.6 * branch
    torch.testing.assert_close(net(x), net[-1](torch.erf(normal(h)).mean((2, 3))))
    assert h.shape == (5, 3, 3, 3)
    assert isinstance(net[1].shortcut, nn.Identity)
    assert net[2].shortcut.weight.shape == (3, 3, 1, 1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mlp(4, 0, 1, 1), "width must be an integer of at least 1, not 0."),
        (lambda: mlp(4, 0, 0, 1), "width must be an integer of at least 1, not 0."),
        (lambda: mlp(4, 8, -1, 1), "depth must be an integer of at least 0, not -1."),
        (lambda: mlp(4, 8, 1, 1, activation="gleu"), "Unknown activation 'gleu'. Did you mean 'gelu'?"),
        (lambda: cnn(1, 8, 1, 1), "image_size must be given with readout='flatten'"),
        (lambda: resnet(1, 8, 0, 1), "depth must be an integer of at least 1, not 0."),
        (lambda: resnet(1, 8, 1, 1, norm="layr"), "Unknown norm 'layr'. Did you mean 'layer'?"),
        (lambda: resnet(1, 8, 1, 1, branch_scale=-1), "branch_scale must be a finite number of at least 0, not -1."),
        (lambda: cnn(1, 8, 1, 1, readout="gpa"), "Unknown readout 'gpa'. Did you mean 'gap'? Available: flatten, gap."),
    ],
)
def test_bad_input_gets_one_sentence(make, sentence) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        make()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "function", "shape", "stds"),
    [
        ("mlp", mlp, {"in_features": 5, "out_features": 2}, (2**0.5, 0.3 * 2**0.5, 1.0, 0.3)),
        ("cnn", cnn, {"in_channels": 1, "image_size": 4, "out_features": 2}, (2**0.5, 0.3 * 2**0.5, 1.0, 0.3)),
        ("resnet", resnet, {"in_channels": 1, "out_features": 2}, (2**0.5, 0.3 * 2**0.5, 1.0, 0.3)),
    ],
)
def test_config_group_builds_the_model(name, function, shape, stds) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert set(config) - {"_target_"} <= set(inspect.signature(function).parameters) - set(shape)
    net = instantiate(config, **shape)
    x = torch.randn(3, *((5,) if name == "mlp" else (1, 4, 4)))
    assert net(x).shape == (3, 2)
    layers = [layer for layer in net if isinstance(layer, Linear | Conv2d)]
    assert (layers[0].w_std, layers[0].b_std, layers[-1].w_std, layers[-1].b_std) == pytest.approx(stds, rel=1e-15)
