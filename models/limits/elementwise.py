"""Rules of activations without a closed form here, and the one line that adds a user's own.

    @elementwise
    class Wiggle(nn.Module): ...

    elementwise_function(my_function)

The activation must act on each entry alone, have no parameters of its own, and be smooth away from 0 (a kink or a
jump at 0 is fine). Whether it is smooth is measured: a quadrature that does not converge is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from models.activations import Cos, Sign, Sin, Square, Step
from models.limits.closed_forms import require_gaussian
from models.limits.quadrature import Phi, diagonal_maps, dual_table
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit

AnyModule = TypeVar("AnyModule", bound=type[nn.Module])


def elementwise(module_type: AnyModule) -> AnyModule:
    """Register an activation module; its limit is found by quadrature of its `forward`. Returns the type."""
    rule(module_type)(_module)
    return module_type


def elementwise_function(*functions: Callable[..., Any] | str) -> None:
    """Register activation functions (or methods of tensors, by name), called with a tensor and constants."""
    for function in functions:
        function_rule(function)(_function(function))


def by_quadrature(phi: Phi, k: Kernels) -> Kernels:
    """The limit of any elementwise activation; the diagonal, which comes first, sets up the table for the tiles."""
    require_gaussian(k)
    if k.diagonal:
        s = k.nngp.clamp_min(0).sqrt()
        nngp, slope, error = diagonal_maps(phi, s)
        rounding = 64 * torch.finfo(s.dtype).eps
        table = dual_table(phi, float(s.min()), float(s.max()), s.device, same=rounding)
        k.memo["table"], k.memo["error"] = table, max(error, table.error)
    else:
        theta, _ = k.angle()
        nngp, slope = k.memo["table"](k.q1.sqrt().flatten(), k.q2.sqrt().flatten(), theta)
    return replace(k, nngp=nngp, ntk=slope * k.ntk, gaussian=False)


def _module(module: nn.Module, k: Kernels) -> Kernels:
    if next(module.parameters(), None) is not None:
        raise NoInfiniteWidthLimit("an elementwise activation must have no parameters")
    return by_quadrature(module, k)


def _function(function: Callable[..., Any] | str) -> Callable[..., Kernels]:
    def apply(k: Kernels, *args: Any, **kwargs: Any) -> Kernels:
        call = getattr(torch.Tensor, function) if isinstance(function, str) else function
        return by_quadrature(lambda z: call(z, *args, **kwargs), k)

    return apply


_TORCH = (nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid)
_OTHERS = (nn.LogSigmoid, nn.Tanhshrink, Sin, Cos, Square, Sign, Step)
for _type in _TORCH + _OTHERS:
    rule(_type)(_module)

elementwise_function(
    functional.elu,
    functional.selu,
    functional.celu,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.softplus,
    functional.softsign,
    functional.tanh,
    functional.sigmoid,
)
elementwise_function(functional.logsigmoid, functional.tanhshrink, torch.tanh, torch.sigmoid, torch.sin, torch.cos)
elementwise_function(torch.square, torch.sign, "tanh", "sigmoid", "sin", "cos", "square", "sign")
