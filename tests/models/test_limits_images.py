"""Limits of convolutional networks: against brute force over all pixels, finite networks, and real images."""

import math

import numpy as np
import pytest
import torch
from image_reference import reference
from limit_references import empirical
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from models.activations import Erf
from models.cnn import cnn
from models.layers import Conv2d, Linear
from models.limits import NoInfiniteWidthLimit, infinite_width
from models.limits.infinite import LIVE


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64) * torch.linspace(0.5, 2, n, dtype=torch.float64).reshape(
        n, *[1] * len(shape)
    )


def conv(c_in: int, c_out: int = 4, size=3, **more) -> Conv2d:
    return Conv2d(c_in, c_out, size, w_std=1.3, b_std=0.3, **{"padding": 1, **more})


GEOMETRIES = {
    "zeros": lambda: [conv(2), Erf(), conv(4), Erf()],
    "valid": lambda: [conv(2, padding="valid"), Erf(), conv(4, size=2, padding=0), Erf()],
    "circular": lambda: [conv(2, padding_mode="circular"), Erf(), conv(4, padding_mode="circular"), Erf()],
    "same, even kernel": lambda: [conv(2, size=2, padding="same"), Erf(), conv(4, size=(2, 3), padding="same"), Erf()],
    "wide padding": lambda: [conv(2, padding=(3, 2)), Erf()],
    "stride": lambda: [conv(2, stride=2), Erf(), conv(4, stride=(1, 2)), Erf()],
    "stride, valid": lambda: [conv(2, stride=(3, 2), padding=0), Erf()],
    "dilation": lambda: [conv(2, dilation=2, padding=2), Erf(), conv(4, dilation=(1, 2)), Erf()],
    "1x1": lambda: [conv(2, size=1, padding=0), Erf(), conv(4, size=1, padding=0, stride=2), Erf()],
    "1x1, padded": lambda: [conv(2, size=1, padding=1), Erf()],
    "torch": lambda: [nn.Conv2d(2, 4, 3, padding=1), Erf(), nn.Conv2d(4, 4, 3, stride=2, bias=False), Erf()],
    "torch, circular": lambda: [nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"), Erf()],
    "torch, reflect": lambda: [nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="reflect"), Erf()],
    "torch, replicate": lambda: [nn.Conv2d(2, 4, (3, 2), padding=1, padding_mode="replicate"), Erf()],
    "ZeroPad2d": lambda: [nn.ZeroPad2d((1, 2, 0, 1)), conv(2, padding=0), Erf(), nn.ZeroPad2d((0, 1, 2, 0)), conv(4)],
    "CircularPad2d": lambda: [conv(2), Erf(), nn.CircularPad2d((1, 2, 1, 0)), conv(4, padding=0), Erf()],
    "cropped": lambda: [conv(2), Erf(), nn.ZeroPad2d((-1, 0, -2, 1)), conv(4)],
    "ReLU": lambda: [conv(2), nn.ReLU(), conv(4), nn.ReLU()],
    "standard": lambda: [conv(2, parameterization="standard"), Erf(), conv(4, parameterization="standard"), Erf()],
    "AvgPool": lambda: [conv(2), Erf(), nn.AvgPool2d(2), conv(4), Erf()],
    "AvgPool, odd": lambda: [conv(2), Erf(), nn.AvgPool2d(3, 2), conv(4), Erf()],
    "AvgPool, overlapping": lambda: [conv(2), nn.ReLU(), nn.AvgPool2d((3, 2), (1, 2), (1, 0)), conv(4), nn.ReLU()],
    "AvgPool, not counting": lambda: [conv(2), Erf(), nn.AvgPool2d(2, 2, 1, count_include_pad=False), conv(4), Erf()],
    "AvgPool, ceil": lambda: [conv(2), Erf(), nn.AvgPool2d(2, 3, 1, ceil_mode=True), conv(4), Erf()],
    "sum pooling": lambda: [conv(2), Erf(), nn.AvgPool2d(2, divisor_override=1), conv(4), Erf()],
    "adaptive": lambda: [conv(2), Erf(), nn.AdaptiveAvgPool2d((2, 3)), conv(4), Erf()],
    "adaptive, even": lambda: [conv(2), Erf(), nn.AdaptiveAvgPool2d((None, 2)), conv(4), Erf()],
    "two pools": lambda: [conv(2), Erf(), nn.AvgPool2d(2), conv(4), Erf(), nn.AvgPool2d(2, 1), conv(4), Erf()],
    "pool first": lambda: [conv(2), nn.AvgPool2d(2), Erf(), conv(4), Erf()],
    "GroupNorm": lambda: [conv(2), nn.GroupNorm(1, 4), conv(4), nn.GroupNorm(2, 4, eps=0.1), nn.ReLU()],
    "LayerNorm": lambda: [conv(2), nn.LayerNorm([4, 5, 4], eps=0.2), conv(4), nn.LayerNorm([4, 5, 4]), nn.ReLU()],
}


def head(kind: str, layers: list[nn.Module], shape: tuple[int, ...]) -> list[nn.Module]:
    """A read-out, after a probe has told the size of what it reads."""
    with torch.no_grad():
        out = nn.Sequential(*layers).double()(torch.zeros(1, *shape, dtype=torch.float64))
    if kind == "flatten":
        return [nn.Flatten(), Linear(out[0].numel(), 3, 0.9, 0.2)]
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(out.shape[1], 3, 0.9, 0.2)]


@pytest.mark.parametrize("kind", ["flatten", "gap"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_against_brute_force(geometry, kind) -> None:
    shape = (2, 5, 4)
    layers = GEOMETRIES[geometry]()
    net = nn.Sequential(*layers, *head(kind, layers, shape))
    x1, x2 = images(2, *shape), images(2, *shape)
    nngp, ntk = reference(net, x1, x2)
    limit = infinite_width(net)(x1, x2)
    # Of the reference, arccos in extended precision costs sqrt(1e-19) where two pixels agree.
    np.testing.assert_allclose(limit.nngp.numpy(), nngp, rtol=1e-10)
    np.testing.assert_allclose(
        limit.ntk.numpy(), ntk, rtol=2e-9 if any(isinstance(m, nn.ReLU) for m in layers) else 1e-10
    )
    symmetric = infinite_width(net)(torch.cat([x1, x2]))
    for found, expected in ((symmetric.nngp, limit.nngp), (symmetric.ntk, limit.ntk)):
        assert torch.equal(found, found.T)
        torch.testing.assert_close(found[:2, 2:], expected, rtol=1e-12, atol=0)


def test_one_axis() -> None:
    x1, x2 = images(2, 3, 7), images(2, 3, 7)
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1, dilation=2),
        Erf(),
        nn.AvgPool1d(2),
        nn.Conv1d(4, 4, 2, stride=2),
        Erf(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 1),
    )
    limit = infinite_width(net)(x1, x2)
    nngp, ntk = reference(net, x1, x2)
    np.testing.assert_allclose(limit.nngp.numpy(), nngp, rtol=1e-10)
    np.testing.assert_allclose(limit.ntk.numpy(), ntk, rtol=1e-10)


class Written(nn.Module):
    """The same network with functions for modules."""

    def __init__(self, layers: list[nn.Module], reduce) -> None:
        super().__init__()
        self.first, self.second, self.last = layers
        self.reduce = reduce

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.avg_pool2d(torch.erf(self.first(functional.pad(x, (1, 1, 1, 1)))), 2)
        x = functional.pad(x, (1, 1, 1, 1), mode="circular")
        return self.last(self.reduce(torch.erf(self.second(x))))


@pytest.mark.parametrize(
    ("reduce", "module", "units"),
    [
        (lambda x: x.mean((2, 3)), nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: x.mean(dim=[-1, -2]), nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: x.mean(3).mean(2), nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1), nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: x.mean((2, 3), keepdim=True).view(x.shape[0], 4), nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: x.sum((2, 3)) / 6, nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), nn.AdaptiveAvgPool2d(1), 4),
        (lambda x: x.view(x.size(0), -1), nn.Identity(), 24),
        (lambda x: x.reshape((x.shape[0], 24)), nn.Identity(), 24),
        (lambda x: x.flatten(1), nn.Identity(), 24),
        (lambda x: x.transpose(1, 2).flatten(1), nn.Identity(), 24),
    ],
)
def test_functions_equal_modules(reduce, module, units) -> None:
    layers = [conv(2, padding=0), conv(4, padding=0), Linear(units, 1)]
    net = nn.Sequential(
        nn.ZeroPad2d(1),
        layers[0],
        Erf(),
        nn.AvgPool2d(2),
        nn.CircularPad2d(1),
        layers[1],
        Erf(),
        module,
        nn.Flatten(),
        layers[2],
    )
    x1, x2 = images(2, 2, 4, 6), images(3, 2, 4, 6)
    expected, limit = infinite_width(net)(x1, x2), infinite_width(Written(layers, reduce))(x1, x2)
    torch.testing.assert_close(limit.nngp, expected.nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(limit.ntk, expected.ntk, rtol=1e-12, atol=0)


@pytest.mark.parametrize("readout", ["flatten", "gap"])
def test_one_hidden_convolution_against_finite_networks(readout) -> None:
    # With one hidden layer both kernels are unbiased at every width, so only the draws' scatter is left.
    draws, width = 300, 64
    x1, x2 = images(2, 2, 4, 4), images(2, 2, 4, 4)
    x1[0] = x2[0] * 1.5
    net = cnn(2, width, 1, 1, "relu", readout, 4, b_std=0.3, readout_b_std=0.2).double()
    params = {name: torch.randn(draws, *p.shape, dtype=p.dtype) for name, p in net.named_parameters()}
    f1, f2 = (vmap(lambda p, x=x: functional_call(net, p, (x,))[:, 0], chunk_size=50)(params) for x in (x1, x2))
    ntk = vmap(lambda p: empirical(net, p, x1, x2), chunk_size=20)(params)
    limit = infinite_width(net)(x1, x2)
    for sample, expected in ((f1[:, :, None] * f2[:, None, :], limit.nngp), (ntk, limit.ntk)):
        error = sample.std(0) / math.sqrt(draws)
        assert ((sample.mean(0) - expected).abs() < 4.5 * error).all()
        assert (error < 0.2 * expected.abs().max()).all()  # so that the comparison says something


@pytest.mark.parametrize("which", ["ours", "torch"])
def test_standard_parameterization_is_the_leading_prediction(which) -> None:
    width, draws = 128, 12
    x = images(3, 3, 6, 6)

    def layer(c_in: int) -> nn.Module:
        return (
            nn.Conv2d(c_in, width, 3, padding=1) if which == "torch" else conv(c_in, width, parameterization="standard")
        )

    last = nn.Linear(width, 1) if which == "torch" else Linear(width, 1, parameterization="standard")
    net = nn.Sequential(
        layer(3), nn.ReLU(), nn.AvgPool2d(2), layer(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last
    ).double()
    limit = infinite_width(net)(x)
    ratios = []
    for _ in range(draws):
        for module in (net[0], net[3], net[7]):
            module.reset_parameters()
        ratios.append(empirical(net, {n: p.detach() for n, p in net.named_parameters()}, x, x) / limit.ntk)
    ratio = torch.stack(ratios)
    error = ratio.std(0) / math.sqrt(draws)
    # The scatter, the next order in 1 / width, and uniform weights of a first layer of fan_in 27 that are no Gaussian.
    assert ((ratio.mean(0) - 1).abs() < 4.5 * error + 10 / width).all()
    assert error.max() < 0.1


def test_memory_budget_and_tiles_do_not_show() -> None:
    net = nn.Sequential(
        conv(2),
        nn.GELU(),
        nn.AvgPool2d(2),
        conv(4),
        nn.ReLU(),
        nn.AvgPool2d(1, 2),
        conv(4),
        Erf(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Linear(4, 1),
    )
    x1, x2 = images(5, 2, 6, 4), images(4, 2, 6, 4)
    f = infinite_width(net)
    for one, two in ((f(x1, x2), f(x1, x2, memory=LIVE * 8 * 24**2)), (f(x1), f(x1, memory=LIVE * 8 * 24**2))):
        # Tables of other ranges of variances: equal to their stated error.
        torch.testing.assert_close(one.nngp, two.nngp, rtol=1e-9, atol=0)
        torch.testing.assert_close(one.ntk, two.ntk, rtol=1e-9, atol=0)


def test_deep_and_extreme_images() -> None:
    x = images(3, 1, 4, 4)
    x[2] = x[1] * (1 + 1e-9)
    x = torch.cat([x, x[:1], torch.zeros(1, 1, 4, 4, dtype=torch.float64)])
    net = cnn(1, 4, 12, 1, "relu", "gap", b_std=None)
    plain = infinite_width(net)(x)
    for scale in (1e-30, 1e30):
        limit = infinite_width(net)(scale * x)
        for one, two in zip(limit[:2], plain[:2], strict=True):
            torch.testing.assert_close(one / scale**2, two, rtol=1e-7, atol=1e-300)
    for kernel in plain[:2]:
        assert torch.equal(kernel[4], torch.zeros(5, dtype=torch.float64))
        assert torch.linalg.eigvalsh(kernel)[0] > -1e-10 * kernel.diagonal().max()
        torch.testing.assert_close(kernel[3], kernel[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([Linear(3, 4)], "'0' (Linear): takes 3 features, but its input has 5."),
        ([nn.Conv2d(3, 4, 3)], "'0' (Conv2d): takes 3 features, but its input has 2."),
        ([nn.Conv2d(2, 4, 7)], "'0' (Conv2d): the kernel does not fit into 5x5 positions."),
        ([nn.Conv2d(2, 4, 3, groups=2)], "'0' (Conv2d): only convolutions with groups=1"),
        ([nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)], "No infinite-width rule for '1' (MaxPool2d)"),
        ([nn.Conv2d(2, 4, 3), nn.ReLU()], "The network returns 3x3 positions for each input: end it in"),
        ([nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(4, 1)], "'2' (Linear): acts on the last axis, but the features are"),
        ([nn.Conv2d(2, 4, 3), nn.Flatten(), nn.AvgPool1d(2)], "'2' (AvgPool1d): takes [samples, channels, 1 axes of"),
    ],
)
def test_refusals(layers, sentence) -> None:
    with pytest.raises(NoInfiniteWidthLimit) as caught:
        infinite_width(nn.Sequential(*layers))(images(2, 2, 5, 5))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("readout", ["flatten", "gap"])
def test_real_images(readout, data_folder) -> None:
    archive = np.load(data_folder / "cifar10.npz")
    raw = torch.from_numpy(archive["x_test"][:5]).double()
    if raw.shape[-1] == 3:
        raw = raw.permute(0, 3, 1, 2)
    x = functional.avg_pool2d(raw, 4)
    x = x / x.flatten(1).norm(dim=1)[:, None, None, None] * math.sqrt(x[0].numel())
    net = cnn(3, 8, 2, 1, "relu", readout, 8, b_std=0.3 * 2**0.5, readout_b_std=0.3)
    limit = infinite_width(net)(x)
    nngp, ntk = reference(net, x[:2], x[2:4])
    np.testing.assert_allclose(limit.nngp[:2, 2:4].numpy(), nngp, rtol=1e-9)
    np.testing.assert_allclose(limit.ntk[:2, 2:4].numpy(), ntk, rtol=1e-8)
    assert torch.linalg.eigvalsh(limit.ntk)[0] > 0


def test_sizes_of_the_input_shape_what_follows() -> None:
    class Net(nn.Module):
        def __init__(self, forward) -> None:
            super().__init__()
            self.first, self.last, self.function = Conv2d(2, 3, 3), Linear(12, 1), forward

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.function(x, torch.relu(self.first(x))))

    x = torch.randn(3, 2, 4, 4)
    expected = infinite_width(Net(lambda x, h: h.flatten(1)))(x)
    for shaped in (lambda x, h: h.view(x.size(0), -1), lambda x, h: h.reshape(x.shape[0], 12)):
        found = infinite_width(Net(shaped))(x)
        torch.testing.assert_close(found.ntk, expected.ntk, rtol=0, atol=0)
