"""Activations whose dual maps E[phi(u) phi(v)] and E[phi'(u) phi'(v)] have a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.activations import Abs, Erf
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit


def require_gaussian(k: Kernels) -> None:
    """Refuse an activation of anything but a Gaussian process."""
    if not k.gaussian:
        raise NoInfiniteWidthLimit(
            "an activation must follow a layer with random weights, whose outputs are Gaussian: put a layer, "
            "or normalise, before it; activations that follow each other are understood as one"
        )


def piecewise_linear(k: Kernels, right: float, left: float) -> Kernels:
    """phi(z) = right * z for z > 0, left * z for z < 0 (Cho & Saul 2009, arc-cosine kernels of order 1 and 0).

    phi is a combination of relu(z) and relu(-z), and J(k) - J(-k) = k / 2 for the ReLU's dual map J.
    """
    require_gaussian(k)
    bend, straight = (right - left) ** 2, right * left
    theta, p_sin = k.angle()
    share = theta.neg_().add_(math.pi).div_(2 * math.pi)  # P(u > 0, v > 0)
    relu_dual = torch.addcmul(p_sin.div_(2 * math.pi), share, k.nngp)
    nngp = relu_dual.mul_(bend).add_(k.nngp, alpha=straight)
    slopes = share.mul_(bend).add_(straight)
    return replace(k, nngp=nngp, ntk=slopes.mul_(k.ntk), gaussian=False)


def erf_dual(k: Kernels) -> Kernels:
    """Williams 1997, eq. 11, with arcsin(a / b) = atan2(a, sqrt(b^2 - a^2)), and b^2 - a^2 without cancellation."""
    require_gaussian(k)
    scale = k.q1.sqrt() * k.q2.sqrt()
    excess = torch.zeros_like(k.nngp) if k.diagonal else ((scale - k.nngp) * (scale + k.nngp)).clamp_min_(0)
    root = excess.mul_(4).add_(2 * (k.q1 + k.q2)).add_(1).sqrt_()
    nngp = torch.atan2(2 * k.nngp, root).mul_(2 / math.pi)
    return replace(k, nngp=nngp, ntk=k.ntk * (4 / math.pi) / root, gaussian=False)


@rule(nn.ReLU, role="activation")
def relu(module: nn.ReLU, k: Kernels) -> Kernels:
    return piecewise_linear(k, 1.0, 0.0)


@rule(nn.LeakyReLU, role="activation")
def leaky_relu(module: nn.LeakyReLU, k: Kernels) -> Kernels:
    return piecewise_linear(k, 1.0, module.negative_slope)


@rule(Abs, role="activation")
def absolute(module: Abs, k: Kernels) -> Kernels:
    return piecewise_linear(k, 1.0, -1.0)


@rule(Erf, role="activation")
def erf(module: Erf, k: Kernels) -> Kernels:
    return erf_dual(k)


@function_rule(functional.leaky_relu, role="activation")
def _leaky_relu_function(k: Kernels, negative_slope: float = 0.01, inplace: bool = False) -> Kernels:
    return piecewise_linear(k, 1.0, negative_slope)


def _function(dual: Callable[[Kernels], Kernels], *targets: Callable[..., Any] | str) -> None:
    function_rule(*targets, role="activation")(lambda k, **_: dual(k))


_function(
    lambda k: piecewise_linear(k, 1.0, 0.0), torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"
)
_function(lambda k: piecewise_linear(k, 1.0, -1.0), torch.abs, abs, "abs")
_function(erf_dual, torch.erf, torch.special.erf, "erf")
