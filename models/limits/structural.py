"""Rules of the layers with weights, of dropout, of sums, and of what only renames axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from models.checks import check_std
from models.layers import Conv2d, Linear
from models.limits.positions import Window, mean_over_positions, position_dims, window_sum
from models.limits.registry import Rule, function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit, equal_positions


@dataclass(frozen=True)
class Affine:
    """A layer of random weights: the average of the kernels it sums over, scaled; and what its parameters add.

    NNGP <- w_variance <NNGP> + b_variance;  NTK <- w_variance <NTK> + w_slope <NNGP> + b_slope.
    """

    w_variance: float
    b_variance: float
    w_slope: float  # 0 where frozen
    b_slope: float
    fan_in: int  # units that it takes: channels of a convolution
    fan_out: int
    windows: tuple[Window, ...] = ()  # one a spatial axis; none: a linear layer

    @property
    def size(self) -> int:
        return math.prod(window.size for window in self.windows)

    def __call__(self, k: Kernels) -> Kernels:
        if k.units != self.fan_in:
            raise NoInfiniteWidthLimit(f"takes {self.fan_in} features, but its input has {k.units}")
        k = self._over_windows(k) if self.windows else _over_features(k)  # sums over windows, not averages
        ntk = (k.ntk * (self.w_variance / self.size)).add_(k.nngp, alpha=self.w_slope / self.size)
        nngp = (k.nngp * (self.w_variance / self.size)).add_(self.b_variance)
        ntk = ntk.add_(self.b_slope) if self.b_slope else ntk
        return replace(k, nngp=nngp, ntk=ntk, channels=self.fan_out, gaussian=True)

    def _over_windows(self, k: Kernels) -> Kernels:
        axes = len(self.windows)
        if k.flat or len(k.space) != axes or k.channel_axis != 1:
            raise NoInfiniteWidthLimit(
                f"a convolution over {axes} axes takes [samples, channels, {axes} axes of positions], "
                f"not {k.positions()}{' flattened' if k.flat else ''} with channels on axis {k.channel_axis}"
            )
        space = tuple(window.outputs(length) for window, length in zip(self.windows, k.space, strict=True))
        if min(space) < 1:
            raise NoInfiniteWidthLimit(f"the kernel does not fit into {k.positions()}")
        return replace(k, nngp=self._sum(k.nngp, k.full), ntk=self._sum(k.ntk, k.full), space=space)

    def _sum(self, kernel: Tensor, full: bool) -> Tensor:
        for window, dims in zip(self.windows, position_dims(len(self.windows), full), strict=True):
            kernel = window_sum(kernel, dims, window)
        return kernel


def _over_features(k: Kernels) -> Kernels:
    if k.flat:
        k = k.at_equal_positions()
        nngp, ntk = (mean_over_positions(t, len(k.space), False) for t in (k.nngp, k.ntk))
        return replace(k, nngp=nngp, ntk=ntk, space=(), flat=False)
    if k.channel_axis != 1 + len(k.space):
        raise NoInfiniteWidthLimit(
            f"acts on the last axis, but the features are on axis {k.channel_axis}: put torch.nn.Flatten(1) before it"
        )
    return k


def _slopes(module: nn.Module, w_slope: float, b_slope: float) -> tuple[float, float]:
    """What weight and bias add to the NTK, unless they are frozen."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    trained = isinstance(bias, Tensor) and bias.requires_grad
    return w_slope if weight.requires_grad else 0.0, b_slope if trained else 0.0


def affine(module: nn.Module) -> Affine:
    """The rule of a layer with weights, ours or torch's."""
    if isinstance(module, Linear | Conv2d):
        variances = module.w_std**2, 0.0 if module.b_std is None else module.b_std**2
        standard = module.parameterization == "standard"
        slopes = (float(module.fan_in), 1.0) if standard else variances
        fan_in = module.fan_in
    elif isinstance(module, nn.Linear | _ConvNd):
        # As torch initializes them: standard, with W and b uniform of variance 1 / (3 fan_in); or as the user says.
        fan_in = math.prod(module.weight.shape[1:])
        w_std, b_std = (_stated(module, field) for field in ("w_std", "b_std"))
        w_variance = 1 / 3 if w_std is None else w_std**2
        b_variance = 1 / (3 * fan_in) if b_std is None else b_std**2
        variances = w_variance, 0.0 if module.bias is None else b_variance
        slopes = float(fan_in), 1.0
    else:
        raise TypeError(f"{type(module).__name__} is no layer with weights.")
    w_slope, b_slope = _slopes(module, *slopes)
    fan_out, features = module.weight.shape[0], module.weight.shape[1]
    return Affine(*variances, w_slope, b_slope, features, fan_out, _windows(module))


def _stated(module: nn.Module, field: str) -> float | None:
    """A standard deviation that the user has set on a torch layer; None where there is none."""
    value = getattr(module, field, None)
    if value is not None:
        check_std(field, value)
    return value


def _windows(module: nn.Module) -> tuple[Window, ...]:
    if isinstance(module, Conv2d):
        sides = module._sides()
        both: tuple[tuple[int, int], ...] = ((sides[2], sides[3]), (sides[0], sides[1]))
        mode = "circular" if module.padding_mode == "circular" else "constant"
    elif isinstance(module, _ConvNd):
        if module.groups != 1 or module.transposed:
            raise NoInfiniteWidthLimit("only convolutions with groups=1 that are not transposed have a limit here")
        sides = list(module._reversed_padding_repeated_twice)  # last axis first
        both = tuple((sides[2 * i], sides[2 * i + 1]) for i in reversed(range(len(module.kernel_size))))
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    else:
        return ()
    shapes = zip(module.kernel_size, module.stride, module.dilation, both, strict=True)
    return tuple(Window(size, stride, dilation, *sides, mode) for size, stride, dilation, sides in shapes)


@rule(Linear, Conv2d, nn.Linear, nn.Conv1d, nn.Conv2d, role="layer")
def weighted(module: nn.Module, k: Kernels) -> Kernels:
    """Both parameterizations: the same NNGP, different weights of the layer's own parameters in the NTK."""
    return affine(module)(k)


@rule(nn.Identity, role="linear")
def identity(module: nn.Identity, k: Kernels) -> Kernels:
    return k


def scaled(k: Kernels, factor: float) -> Kernels:
    """factor * h."""
    square = factor * factor
    mean = None if k.mean is None else k.mean * factor
    return replace(k, nngp=k.nngp * square, ntk=k.ntk * square, mean=mean)


def dropout(k: Kernels, p: float, whole_channels: bool) -> Kernels:
    """In training mode an input's own entries gain 1 / (1 - p); two inputs have independent masks."""
    if p == 0:
        return k
    if p >= 1:
        raise NoInfiniteWidthLimit("dropout of everything (p = 1) leaves no network")
    factor = 1 / (1 - p)
    nngp, ntk = (_scale_same(t, k, factor, whole_channels) for t in (k.nngp, k.ntk))
    mean = None if k.mean is None else k.mean.clone()  # as it was
    return replace(k, nngp=nngp, ntk=ntk, mean=mean, gaussian=False)


def _scale_same(kernel: Tensor, k: Kernels, factor: float, whole_channels: bool) -> Tensor:
    if k.diagonal:
        return kernel * factor
    if k.same == "none":
        return kernel
    kernel = kernel.clone()
    axes = len(k.space) * (2 if k.full else 1)
    # pairs [n], or the first columns of a tile [r, c]
    same = kernel if k.same == "all" else kernel.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    if k.full and not whole_channels:
        assert axes
        same = equal_positions(same, len(k.space))
    same.mul_(factor)
    return kernel


@rule(_DropoutNd, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, role="linear", own=True)
def dropout_module(module: _DropoutNd, k: Kernels) -> Kernels:
    return dropout(k, module.p if module.training else 0.0, not isinstance(module, nn.Dropout))


@function_rule(functional.dropout, role="linear", own=True)
def _dropout_function(k: Kernels, p: float = 0.5, training: bool = True, inplace: bool = False) -> Kernels:
    return dropout(k, p if training else 0.0, whole_channels=False)


@rule(nn.Flatten, role="linear", equal=True)
def flatten(module: nn.Flatten, k: Kernels) -> Kernels:
    return flatten_function(k, module.start_dim, module.end_dim)


@function_rule(torch.flatten, "flatten", role="linear", equal=True)
def flatten_function(k: Kernels, start_dim: int = 0, end_dim: int = -1, **_: Any) -> Kernels:
    axes = 1 if k.flat else 1 + len(k.space)
    if start_dim not in (1, -axes) and not (axes == 1 and start_dim == -1):
        raise NoInfiniteWidthLimit(f"flattening must start at axis 1, to keep the samples apart, not at {start_dim}")
    if end_dim not in (-1, axes):
        raise NoInfiniteWidthLimit(f"flattening must reach the last axis, {axes}, not end at {end_dim}")
    return _flat(k)


def positions_flattened(k: Kernels, start_dim: int = 2, end_dim: int = -1) -> Kernels:
    """Flattening from axis 2: height and width become one axis of positions, as attention takes them."""
    axes = len(k.space)
    if k.flat or k.channel_axis != 1 or axes == 0 or end_dim not in (-1, axes + 1):
        raise NoInfiniteWidthLimit(
            "flattening may keep the channels only where all axes after them are positions: [samples, channels, ...]"
        )
    count = math.prod(k.space)
    pairs = k.nngp.shape[: k.nngp.ndim - axes * (2 if k.full else 1)]
    shape = (*pairs, *[count] * (2 if k.full else 1))
    mean = None if k.mean is None else k.mean.reshape(-1, count)
    return replace(k, nngp=k.nngp.reshape(shape), ntk=k.ntk.reshape(shape), mean=mean, space=(count,))


FLATTEN_POSITIONS = Rule(positions_flattened, "linear", variances=False)


def _flat(k: Kernels) -> Kernels:
    return replace(k.at_equal_positions(), flat=bool(k.space), channel_axis=1)


@function_rule("view", "reshape", torch.reshape, role="linear", equal=True)
def _reshape(k: Kernels, *sizes: Any) -> Kernels:
    shape = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else list(sizes)
    units = k.channels * math.prod(k.space)
    if len(shape) != 2 or shape[1] not in (-1, units):
        raise NoInfiniteWidthLimit("of reshapes only the one to [samples, everything else] has a limit")
    return _flat(k)


@function_rule("permute", torch.permute, role="linear")
def _permute(k: Kernels, *order: Any) -> Kernels:
    axes = 2 + (0 if k.flat else len(k.space))
    flat_order = order[0] if len(order) == 1 and isinstance(order[0], tuple | list) else order
    new = [axis % axes for axis in flat_order]
    kept = [axis for axis in new[1:] if axis != k.channel_axis]
    if len(new) != axes or new[0] != 0 or kept != sorted(kept):
        raise NoInfiniteWidthLimit("axes may be permuted only by moving the channels among the positions")
    return replace(k, channel_axis=new.index(k.channel_axis))


@function_rule("transpose", torch.transpose, "swapaxes", torch.swapaxes, role="linear")
def _transpose(k: Kernels, first: int, second: int) -> Kernels:
    order = list(range(2 + (0 if k.flat else len(k.space))))
    order[first], order[second] = order[second], order[first]
    return _permute(k, *order)


def _unchanged(k: Kernels, *args: Any, **kwargs: Any) -> Kernels:
    return k


function_rule("contiguous", "clone", torch.clone, role="linear")(_unchanged)


def merged(*parts: Kernels) -> Kernels:
    """The average over the units of concatenated branches, for a layer that sums over all of them."""
    parts = tuple(replace(_over_features(k), channels=k.units) if k.flat else k for k in parts)
    layouts = {(k.space, k.full, k.channel_axis) for k in parts}
    if len(layouts) > 1:
        raise NoInfiniteWidthLimit("concatenated branches must have the same positions")
    units = sum(k.channels for k in parts)

    def average(tensors: list[Tensor]) -> Tensor:
        return sum(t * (k.channels / units) for t, k in zip(tensors, parts, strict=True))  # type: ignore[return-value]

    first = parts[0]
    means: list[Tensor] | None = None
    if not all(k.gaussian for k in parts) and all(k.gaussian or k.mean is not None for k in parts):
        means = [torch.zeros_like(k.nngp) if k.mean is None else k.mean for k in parts]
    return replace(
        first,
        nngp=average([k.nngp for k in parts]),
        ntk=average([k.ntk for k in parts]),
        channels=units,
        gaussian=all(k.gaussian for k in parts),
        mean=None if means is None else average(means),
    )


def added(first: Kernels, second: Kernels) -> Kernels:
    """The sum of two branches that are independent (the graph has made sure)."""
    layouts = [(k.space, k.flat, k.full, k.channel_axis, k.channels) for k in (first, second)]
    if layouts[0] != layouts[1]:
        raise NoInfiniteWidthLimit(
            f"branches of different shapes are added: {first.channels} channels with {first.positions()} and "
            f"{second.channels} channels with {second.positions()}"
        )
    gaussian = first.gaussian and second.gaussian
    nngp, ntk = first.nngp + second.nngp, first.ntk + second.ntk
    return replace(first, nngp=nngp, ntk=ntk, gaussian=gaussian, mean=_mean_of_sum(first, second), variances=None)


def _mean_of_sum(first: Kernels, second: Kernels) -> Tensor | None:
    """None where a mean is not known, or both are 0."""
    known = [k.mean for k in (first, second) if k.mean is not None]
    if len(known) == 2:
        return known[0] + known[1]
    return known[0] if known and (first.gaussian or second.gaussian) else None
