"""Residual convolutional networks in pre-activation order, without normalisation or with layer normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.activations import activation as activation_module
from models.checks import check_choice, check_count, check_std
from models.layers import Conv2d, Linear, Parameterization

NORMS = ("none", "layer")


class ResidualBlock(nn.Module):
    """x + branch_scale * conv(activation(conv(activation(x)))), each activation after a normalisation if there is one.

    With a stride both branches shrink by it, the shortcut through a 1 x 1 convolution of its own (He et al. 2016).
    """

    def __init__(
        self,
        width: int,
        activation: str | nn.Module,
        norm: Literal["none", "layer"],
        stride: int,
        branch_scale: float,
        parameterization: Parameterization,
        w_std: float,
        b_std: float | None,
    ) -> None:
        super().__init__()

        def convolution(stride: int) -> Conv2d:
            return Conv2d(width, width, 3, stride, 1, w_std=w_std, b_std=b_std, parameterization=parameterization)

        self.branch_scale = branch_scale
        self.first = nn.Sequential(*_normalised(norm, width), activation_module(activation))
        self.branch = nn.Sequential(
            convolution(stride),
            *_normalised(norm, width),
            activation_module(activation),
            convolution(1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = Conv2d(width, width, 1, stride, w_std=1.0, b_std=None, parameterization=parameterization)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.shortcut(x), self.branch(self.first(x)), alpha=self.branch_scale)


def _normalised(norm: str, width: int) -> list[nn.Module]:
    """Over channels and positions, with a gain and a bias a channel: layer normalisation for images of any size."""
    return [nn.GroupNorm(1, width)] if norm == "layer" else []


def resnet(
    in_channels: int,
    width: int,
    depth: int,
    out_features: int,
    activation: str | nn.Module = "relu",
    norm: Literal["none", "layer"] = "none",
    stages: int = 1,
    branch_scale: float = 1.0,
    parameterization: Parameterization = "ntk",
    w_std: float = 2**0.5,
    b_std: float | None = 0.0,
    readout_w_std: float = 1.0,
    readout_b_std: float | None = None,
) -> nn.Sequential:
    """A 3 x 3 stem, `stages` times `depth` residual blocks of `width` channels, global average pooling and a read-out.

    x [n, in_channels, height, width] -> [n, out_features]; each stage after the first starts with stride 2. `norm`:
    "none" (keep the variance in hand by `branch_scale`, such as depth ** -0.5) or "layer" (over channels and
    positions, with a trained gain and bias a channel). Its infinite-width limit exists because each branch ends in a
    convolution of its own; the last activation comes before the pooling.
    Raises ValueError with one sentence for sizes below 1 and unknown names.
    """
    sizes = {"in_channels": in_channels, "width": width, "depth": depth, "out_features": out_features, "stages": stages}
    for field, value in sizes.items():
        check_count(field, value)
    check_choice("norm", norm, NORMS)
    check_std("branch_scale", branch_scale)
    scales = (branch_scale, parameterization, w_std, b_std)
    layers: list[nn.Module] = [
        Conv2d(in_channels, width, 3, padding=1, w_std=w_std, b_std=b_std, parameterization=parameterization)
    ]
    for stage in range(stages):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(width, activation, norm, stride, *scales))
    layers += [*_normalised(norm, width), activation_module(activation), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    layers.append(Linear(width, out_features, readout_w_std, readout_b_std, parameterization))
    return nn.Sequential(*layers)
