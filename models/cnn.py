"""Plain convolutional networks."""

from __future__ import annotations

from typing import Literal

from torch import nn

from models.activations import activation as activation_module
from models.checks import check_choice, check_count
from models.layers import Conv2d, Linear, Parameterization

READOUTS = ("flatten", "gap")


def cnn(
    in_channels: int,
    width: int,
    depth: int,
    out_features: int,
    activation: str | nn.Module = "relu",
    readout: Literal["flatten", "gap"] = "flatten",
    image_size: int | None = None,
    kernel_size: int = 3,
    parameterization: Parameterization = "ntk",
    w_std: float = 2**0.5,
    b_std: float | None = 0.0,
    readout_w_std: float = 1.0,
    readout_b_std: float | None = None,
) -> nn.Sequential:
    """`depth` convolutions of `width` channels and a read-out: x [n, in_channels, size, size] -> [n, out_features].

    The convolutions keep the image's size (zero padding, stride 1). `readout="flatten"` reads every pixel
    (fan_in = width * image_size^2, so `image_size` must be given); "gap" averages over pixels first (fan_in = width).
    Raises ValueError with one sentence for sizes below 1, unknown names and a missing `image_size`.
    """
    for field, value in {"in_channels": in_channels, "width": width, "out_features": out_features}.items():
        check_count(field, value)
    check_count("depth", depth, minimum=0)
    check_choice("readout", readout, READOUTS)
    layers: list[nn.Module] = []
    channels = in_channels
    for _ in range(depth):
        convolution = Conv2d(
            channels, width, kernel_size, padding="same", w_std=w_std, b_std=b_std, parameterization=parameterization
        )
        layers += [convolution, activation_module(activation)]
        channels = width
    features = channels
    if readout == "gap":
        layers.append(nn.AdaptiveAvgPool2d(1))
    else:
        if image_size is None:
            raise ValueError("image_size must be given with readout='flatten': the read-out has a weight a pixel.")
        check_count("image_size", image_size)
        features = channels * image_size**2
    layers += [nn.Flatten(1), Linear(features, out_features, readout_w_std, readout_b_std, parameterization)]
    return nn.Sequential(*layers)
