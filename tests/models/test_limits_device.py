"""Everything is on the inputs' device: each rule on torch's meta device, in a mode that refuses a mix of devices."""

import pytest
import torch
from test_limits_images import GEOMETRIES, head
from torch import nn

from models import activations
from models.layers import Conv2d, Linear
from models.limits import infinite_width
from models.resnet import resnet
from tests.one_device import OneDevice

pytestmark = pytest.mark.slow


def on_meta(net: nn.Module, *shape: int) -> None:
    limit = infinite_width(net.to("meta"))
    x1, x2 = torch.randn(3, *shape, device="meta"), torch.randn(2, *shape, device="meta")
    with OneDevice() as mode:
        for found in (*limit(x1)[:2], *limit(x1, x2)[:2]):
            assert found.device.type == "meta"
    assert mode.seen > 10


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_images(geometry) -> None:
    layers = GEOMETRIES[geometry]()
    kind = "flatten" if "AvgPool" in geometry else "gap"  # either way all covariances are needed somewhere
    on_meta(nn.Sequential(*layers, *head(kind, layers, (2, 5, 4))), 2, 5, 4)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_residual(norm) -> None:
    on_meta(resnet(3, 4, 1, 1, norm=norm, stages=2), 3, 6, 6)


@pytest.mark.parametrize(
    "phi",
    [
        *(activations.activation(name) for name in activations.ACTIVATIONS),
        activations.RectifiedPower(3),
        activations.Power(3),
        activations.Hermite(4),
    ],
    ids=lambda phi: type(phi).__name__,
)
def test_activations(phi) -> None:
    on_meta(nn.Sequential(Linear(4, 3), phi, Linear(3, 3), nn.LayerNorm(3), nn.Dropout(0.3), Linear(3, 1)), 4)


def test_normalisation_after_activations() -> None:
    body = [
        Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.GroupNorm(1, 4, affine=False),
        nn.AvgPool2d(2),
        nn.LayerNorm([4, 2, 2]),
    ]
    more = [Conv2d(4, 4, 3, padding=1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4)]
    on_meta(nn.Sequential(*body, *more, nn.Linear(4, 1)), 2, 4, 4)


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(torch.cat([self.a(x), 0.5 * self.b(x)], 1)))


def test_concatenation() -> None:
    on_meta(Concatenated(), 4)
