"""Fully connected networks."""

from __future__ import annotations

from torch import nn

from models.activations import activation as activation_module
from models.checks import check_count
from models.layers import Linear, Parameterization


def mlp(
    in_features: int,
    width: int,
    depth: int,
    out_features: int,
    activation: str | nn.Module = "relu",
    parameterization: Parameterization = "ntk",
    w_std: float = 2**0.5,
    b_std: float | None = 0.0,
    readout_w_std: float = 1.0,
    readout_b_std: float | None = None,
) -> nn.Sequential:
    """`depth` hidden layers of `width` units and a linear read-out: x [n, ...] -> [n, out_features].

    Inputs of more than one axis are flattened to `in_features`. `depth=0` is the linear model. `b_std=None` (or
    `readout_b_std=None`) leaves the bias out; 0. keeps it, with the effect that the parameterization gives it.
    Raises ValueError with one sentence for sizes below 1 and for unknown names.
    """
    for field, value in {"in_features": in_features, "width": width, "out_features": out_features}.items():
        check_count(field, value)
    check_count("depth", depth, minimum=0)
    layers: list[nn.Module] = [nn.Flatten(1)]
    features = in_features
    for _ in range(depth):
        layers += [Linear(features, width, w_std, b_std, parameterization), activation_module(activation)]
        features = width
    layers.append(Linear(features, out_features, readout_w_std, readout_b_std, parameterization))
    return nn.Sequential(*layers)
