"""Two engines, one answer."""

import logging

import numpy as np
import pytest
import torch
from image_reference import reference
from torch import nn

from models.activations import Abs, Erf
from models.cnn import cnn
from models.layers import Conv2d, Linear
from models.limits import infinite_width
from models.mlp import mlp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv(c_in: int, size: int = 3, **more) -> Conv2d:
    return Conv2d(c_in, 4, size, padding=size // 2, w_std=1.3, b_std=0.3, **more)


def around(c_in: int, size: int = 3) -> nn.Module:
    return Conv2d(c_in, 4, size, padding=size // 2, padding_mode="circular", w_std=1.3, b_std=0.3)


def bare(c_in: int, size: int = 3) -> nn.Module:
    return Conv2d(c_in, 4, size, w_std=1.3, b_std=0.3)


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(2), conv(4), Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.avg_pool2d(torch.relu(self.first(x)), 2)
        x = torch.maximum(h := self.second(x), 0.1 * h)
        return self.last(x.mean((2, 3)))


CHAINS = {
    "flatten": lambda: cnn(2, 4, 3, 1, "relu", "flatten", 8, b_std=0.3),
    "gap": lambda: cnn(2, 4, 2, 1, "leaky_relu", "gap", b_std=0.3, readout_b_std=0.2),
    "standard": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    ),
    "no bias, frozen": lambda: nn.Sequential(
        conv(2, 1), Abs(), conv(4, 5).requires_grad_(False), nn.ReLU(), conv(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), Linear(4, 1),
    ),
    "Myrtle": lambda: nn.Sequential(
        conv(2), nn.ReLU(), conv(4), nn.ReLU(), nn.AvgPool2d(2), conv(4), nn.ReLU(), nn.AvgPool2d(2), conv(4),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(4, 1),
    ),
    "pool, flatten": lambda: nn.Sequential(
        conv(2), nn.ReLU(), nn.AvgPool2d(4), conv(4), nn.ReLU(), nn.Flatten(), Linear(16, 1)
    ),
    "sum pooling first": lambda: nn.Sequential(
        conv(2), nn.AvgPool2d(2, divisor_override=1), nn.ReLU(), conv(4), nn.ReLU(), nn.Flatten(), Linear(64, 1)
    ),
    "linear": lambda: nn.Sequential(conv(2), conv(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(4, 1)),
    "functions": Functions,
    "circular": lambda: nn.Sequential(
        around(2), nn.ReLU(), around(4, 5), nn.ReLU(), nn.AvgPool2d(2), around(4), conv(4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(4, 1),
    ),
    "circular, flatten": lambda: nn.Sequential(
        around(2), nn.ReLU(), around(4), nn.ReLU(), nn.Flatten(), Linear(256, 1)
    ),
    "valid": lambda: nn.Sequential(
        bare(2), nn.ReLU(), nn.AvgPool2d(2), bare(4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(4, 1),
    ),
    "even windows": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 4, padding="same"), nn.ReLU(), bare(4, 2), conv(4), nn.ReLU(), nn.AvgPool2d(7), nn.Flatten(),
        Linear(4, 1),
    ),
    "valid, flatten": lambda: nn.Sequential(bare(2, 4), nn.ReLU(), conv(4), nn.ReLU(), nn.Flatten(), Linear(100, 1)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CHAINS)
def test_engines_agree(name, dtype) -> None:
    net = CHAINS[name]()
    x1, x2 = torch.randn(19, 2, 8, 8, dtype=dtype), torch.randn(3, 2, 8, 8, dtype=dtype)
    x1[3] = 0
    x1[4] = 1.5 * x2[0]
    limit = infinite_width(net)
    for arguments in ((x1, x2), (x1,), (x2,)):
        one, two = (limit(*arguments, engine=engine) for engine in ("compiled", "torch"))
        for compiled, plain in zip(one[:2], two[:2], strict=True):
            away = torch.ones_like(plain, dtype=torch.bool)
            if len(arguments) == 2:
                away[4, 0] = False
            elif len(plain) > 3:
                away[3, 3] = False  # all pixels of a black image agree
            tight, loose = {torch.float64: (1e-11, 3e-8), torch.float32: (2e-5, 2e-3)}[dtype]
            torch.testing.assert_close(compiled[away], plain[away], rtol=tight, atol=0)
            # Of pixels that agree the angle is the root of a rounding error, and the NTK linear in it.
            torch.testing.assert_close(compiled, plain, rtol=loose, atol=0)
        if len(arguments) == 1:
            assert torch.equal(one.ntk, one.ntk.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("depth", [0, 1, 3, 20])
def test_engines_agree_on_dense_networks(depth, parameterization, dtype) -> None:
    limit = infinite_width(mlp(6, 4, depth, 1, "relu", parameterization, b_std=0.3, readout_b_std=0.1))
    x1, x2 = torch.randn(40, 6, dtype=dtype), torch.randn(23, 2, 3, dtype=dtype).flatten(1)
    x1[3] = 0
    for arguments in ((x1, x2), (x1,)):
        one, two = (limit(*arguments, engine=engine) for engine in ("compiled", "torch"))
        for compiled, plain in zip(one[:2], two[:2], strict=True):
            # Rounding of a correlation close to 1, where a deep ReLU network's are, is squared off by the angle.
            tolerance = {torch.float64: 1e-11, torch.float32: 2e-5}[dtype] * (1 if depth < 20 else 1e3)
            assert (compiled - plain).abs().max() < tolerance * plain.abs().max()
        if len(arguments) == 1:
            assert torch.equal(one.ntk, one.ntk.T)
            torch.testing.assert_close(one.ntk.diagonal(), two.ntk.diagonal(), rtol=10 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("readout", ["flatten", "gap"])
def test_compiled_against_brute_force(readout) -> None:
    net = cnn(2, 4, 2, 1, "relu", readout, 5, b_std=0.3)
    x1, x2 = torch.randn(2, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    nngp, ntk = reference(net, x1, x2)
    limit = infinite_width(net)(x1, x2, engine="compiled")
    np.testing.assert_allclose(limit.nngp.numpy(), nngp, rtol=1e-11)
    np.testing.assert_allclose(limit.ntk.numpy(), ntk, rtol=1e-9)


@pytest.mark.parametrize(
    "layers",
    [
        [conv(2), Erf()],
        [conv(2, stride=2), nn.ReLU()],
        [conv(2), around(4), nn.ReLU()],
        [nn.Conv2d(2, 4, 3, padding=2), nn.ReLU()],
        [nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()],
        [conv(2), nn.ReLU(), nn.AvgPool2d(3, 2)],
        [conv(2), nn.GroupNorm(1, 4), nn.ReLU()],
    ],
)
def test_other_networks_are_left_to_torch(layers) -> None:
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(4, 1))
    x = torch.randn(2, 2, 8, 8)
    with pytest.raises(ValueError, match="engine='compiled' knows chains of convolutions"):
        infinite_width(net)(x, engine="compiled")
    infinite_width(net)(x)


def test_choice_is_logged_once_and_can_be_forced(caplog) -> None:
    limit = infinite_width(cnn(1, 4, 1, 1, "relu", "gap"))
    x = torch.randn(17, 1, 16, 16)
    with caplog.at_level(logging.INFO, "models.limits.infinite"):
        limit(x)
        limit(x)
        limit(x[:2])
        limit(x[:1], engine="torch")
    assert [record.message for record in caplog.records] == [
        "Infinite-width kernels by the compiled engine.",
        "Infinite-width kernels by the torch engine.",
    ]
    with pytest.raises(ValueError, match="Unknown engine 'numba'"):
        limit(x, engine="numba")


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.3)])
@pytest.mark.parametrize("shape", ["dense", "flatten", "gap"])
def test_engines_agree_at_inputs_and_patches_of_exactly_zero(shape, activation) -> None:
    """With zero biases that are trained, as in standard parameterization, the derivative at 0 counts: autograd's.

    That of the torch engine, to 1e-12; with the angle's share in its place the entries are off by 9 % (gap).
    """
    of = {"parameterization": "standard", "w_std": 1.0, "b_std": 0.0}
    if shape == "dense":
        x = torch.randn(6, 6, dtype=torch.float64)
        x[3:5] = 0
        layers = [Linear(6, 64, **of), activation, Linear(64, 64, **of), activation, Linear(64, 1, **of)]
    else:
        x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
        x[:, :, :4] = 0
        x[3] = 0
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if shape == "gap" else [nn.Flatten()]
        width = 8 if shape == "gap" else 8 * 64
        layers = [Conv2d(1, 8, 3, padding=1, **of), activation, Conv2d(8, 8, 3, padding=1, **of), activation]
        layers = [*layers, *head, Linear(width, 1, **of)]
    limit = infinite_width(nn.Sequential(*layers))
    for other in (None, x.flip(0)):
        expected, found = (limit(x, other, engine=engine) for engine in ("torch", "compiled"))
        torch.testing.assert_close(found.ntk, expected.ntk, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.nngp, expected.nngp, rtol=1e-12, atol=1e-12)
