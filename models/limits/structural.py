"""Rules of the layers with weights, and of those that change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from models.layers import Linear
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit


@rule(Linear)
def linear(module: Linear, k: Kernels) -> Kernels:
    """Both parameterizations: the same NNGP, different weights of the layer's own parameters in the NTK."""
    w_variance = module.w_std**2
    b_variance = 0.0 if module.b_std is None else module.b_std**2
    if module.parameterization == "standard":
        return _affine(module, k, w_variance, b_variance, float(module.in_features), 1.0)
    return _affine(module, k, w_variance, b_variance, w_variance, b_variance)


@rule(nn.Linear)
def torch_linear(module: nn.Linear, k: Kernels) -> Kernels:
    """As torch initializes it: standard, with W and b uniform of variance 1 / (3 fan_in).

    Uniform weights give Gaussian outputs only for a large fan_in: a first layer of 10 inputs is off by some per cent.
    """
    fan_in = module.in_features
    b_variance = 0.0 if module.bias is None else 1 / (3 * fan_in)
    return _affine(module, k, 1 / 3, b_variance, float(fan_in), 1.0)


def _affine(
    module: Linear | nn.Linear, k: Kernels, w_variance: float, b_variance: float, w_slope: float, b_slope: float
) -> Kernels:
    """Weight and bias add `w_slope * nngp` and `b_slope` to the NTK, unless they are frozen."""
    if k.units != module.in_features:
        raise NoInfiniteWidthLimit(f"takes {module.in_features} features, but its input has {k.units}")
    ntk = k.ntk * w_variance
    if module.weight.requires_grad:
        ntk.add_(k.nngp, alpha=w_slope)
    if module.bias is not None and module.bias.requires_grad:
        ntk.add_(b_slope)
    nngp = (k.nngp * w_variance).add_(b_variance)
    return replace(k, nngp=nngp, ntk=ntk, units=module.out_features, gaussian=True)


@rule(nn.Identity)
def identity(module: nn.Identity, k: Kernels) -> Kernels:
    return k


@rule(_DropoutNd)
def dropout(module: _DropoutNd, k: Kernels) -> Kernels:
    if module.training and module.p > 0:
        raise NoInfiniteWidthLimit("dropout has a limit in evaluation mode only, so call .eval() on the network first")
    return k


for _dropout in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
    rule(_dropout)(dropout)


@rule(nn.Flatten)
def flatten(module: nn.Flatten, k: Kernels) -> Kernels:
    return flatten_function(k, module.start_dim, module.end_dim)


@function_rule(torch.flatten, "flatten")
def flatten_function(k: Kernels, start_dim: int = 0, end_dim: int = -1, **_: Any) -> Kernels:
    if start_dim not in (1, -1):
        raise NoInfiniteWidthLimit(f"flattening must start at axis 1, to keep the samples apart, not at {start_dim}")
    return k
