"""Matrix products on a CPU in float32, where oneDNN uses all of a processor's vector units and the default library does
not on every processor (2.2 times faster on AMD's with AVX-512; a tenth slower without); everywhere else torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WORTH = 2**20
"""Multiplications below which the choice does not matter."""
WIDE = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
AVAILABLE = WIDE and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def inner(one: Tensor, two: Tensor) -> Tensor:
    """[m, a, k], [m, b, k] -> [m, a, b]."""
    if not by_onednn(one[0], two[0]):
        return one @ two.mT
    products = [_linear(a, b, None) for a, b in zip(one, two, strict=True)]
    return products[0][None] if len(products) == 1 else torch.stack(products)


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x [a, k] times weight [b, k] is a product for oneDNN."""
    fast = AVAILABLE and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return fast and x.ndim == weight.ndim == 2 and x.numel() * len(weight) >= WORTH


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not weight.T.is_contiguous():  # a transposed weight is read as it lies: a copy would double a small batch's time
        weight = weight.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return product


class LinearToInputs(torch.autograd.Function):
    """x W' + b, differentiable with respect to x only: the gradient of W is what the kernel avoids."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        return (_linear(gradients[0], weight.T, None) if ctx.needs_input_grad[0] else None), None, None
