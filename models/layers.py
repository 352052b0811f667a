"""Linear and convolutional layers in NTK and in standard parameterization.

ntk:      y = w_std / sqrt(fan_in) * W x + b_std * b,  W and b ~ N(0, 1)
standard: y = W x + b,  W ~ N(0, w_std^2 / fan_in),  b ~ N(0, b_std^2)

Both have the same distribution of outputs at initialization; they differ in how fast each parameter moves under
gradient descent (Jacot, Gabriel & Hongler 2018; Sohl-Dickstein et al. 2020).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checks import check_choice, check_count, check_std

Parameterization = Literal["ntk", "standard"]
PARAMETERIZATIONS = ("ntk", "standard")
PADDING_MODES = ("zeros", "circular")


class _Affine(nn.Module):
    """Weights and bias of either parameterization; subclasses say what is multiplied with what."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, weight_shape: tuple[int, ...], w_std: float, b_std: float | None, parameterization: Parameterization
    ) -> None:
        super().__init__()
        check_std("w_std", w_std)
        if b_std is not None:
            check_std("b_std", b_std)
        check_choice("parameterization", parameterization, PARAMETERIZATIONS)
        self.w_std = float(w_std)
        self.b_std = None if b_std is None else float(b_std)
        self.parameterization = parameterization
        self.fan_in = math.prod(weight_shape[1:])
        self.weight = nn.Parameter(torch.empty(weight_shape))
        if b_std is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty(weight_shape[0]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias afresh from torch's global random generator."""
        ntk = self.parameterization == "ntk"
        nn.init.normal_(self.weight, std=1.0 if ntk else self.w_std / math.sqrt(self.fan_in))
        if self.bias is not None and self.b_std is not None:
            nn.init.normal_(self.bias, std=1.0 if ntk else self.b_std)

    def _scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they multiply and add.

        The weights are scaled, not the outputs: there are fewer of them than activations in a batch.
        """
        if self.parameterization == "standard":
            return self.weight, self.bias
        weight = self.weight * (self.w_std / math.sqrt(self.fan_in))
        return weight, None if self.bias is None or self.b_std is None else self.bias * self.b_std

    def _scales(self) -> str:
        return f"w_std={self.w_std:g}, b_std={self.b_std}, parameterization={self.parameterization!r}"


class Linear(_Affine):
    """y = x W' + b for x [..., in_features] -> [..., out_features].

    `weight` [out_features, in_features]; `bias` [out_features], or None with `b_std=None`.
    Raises ValueError for sizes below 1, negative standard deviations or an unknown parameterization.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        w_std: float = 1.0,
        b_std: float | None = None,
        parameterization: Parameterization = "ntk",
    ) -> None:
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        super().__init__((out_features, in_features), w_std, b_std, parameterization)
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, *self._scaled())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._scales()}"


class Conv2d(_Affine):
    """Cross-correlation of x [..., in_channels, height, width], as torch.nn.Conv2d, in either parameterization.

    `weight` [out_channels, in_channels, *kernel_size], fan_in = in_channels * kernel area; `bias` [out_channels], or
    None with `b_std=None`. `padding`: pixels on each side (a number, or one for each axis), "same" (the image keeps
    its size; stride 1 only) or "valid" (none); `padding_mode` "zeros" or "circular".
    Raises ValueError with one sentence for anything else.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        padding_mode: str = "zeros",
        dilation: int | tuple[int, int] = 1,
        w_std: float = 1.0,
        b_std: float | None = None,
        parameterization: Parameterization = "ntk",
    ) -> None:
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        kernel = _pair("kernel_size", kernel_size)
        super().__init__((out_channels, in_channels, *kernel), w_std, b_std, parameterization)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = _pair("stride", stride)
        self.dilation = _pair("dilation", dilation)
        self.padding_mode = padding_mode
        self.padding = self._padding(padding)

    def _padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int] | str:
        if not isinstance(padding, str):
            return _pair("padding", padding, minimum=0)
        check_choice("padding", padding, ("same", "valid"))
        if padding == "same" and self.stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, not {self.stride}.")
        return (0, 0) if padding == "valid" else padding

    def _sides(self) -> list[int]:
        """Pixels to add at left, right, top, bottom; an odd 'same' total puts the extra one last, as torch does."""
        sides: list[int] = []
        for axis in (1, 0):
            if isinstance(self.padding, str):
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [self.padding[axis]] * 2
        return sides

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._scaled()
        left, right, top, bottom = self._sides()
        if self.padding_mode == "zeros" and left == right and top == bottom:
            return functional.conv2d(x, weight, bias, self.stride, (top, left), self.dilation)
        mode = "circular" if self.padding_mode == "circular" else "constant"
        padded = functional.pad(x, (left, right, top, bottom), mode=mode)
        return functional.conv2d(padded, weight, bias, self.stride, 0, self.dilation)

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, padding={self.padding!r} ({self.padding_mode}), dilation={self.dilation}, {self._scales()}"


def _pair(field: str, value: int | tuple[int, int], minimum: int = 1) -> tuple[int, int]:
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{field} must be an integer or a pair of integers, not {value!r}.")
    for entry in value:
        check_count(field, entry, minimum)
    return (value[0], value[1])
