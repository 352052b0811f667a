"""Rules of what acts on positions without weights: padding, pooling, means and sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits.positions import (
    Pool,
    Window,
    adaptive_matrix,
    apply_matrix,
    average_pool,
    mean_over_positions,
    pad,
    position_dims,
)
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit

OneAxis = Callable[[Tensor, int], Tensor]


def _images(k: Kernels, axes: int) -> None:
    if k.flat or len(k.space) != axes or k.channel_axis != 1:
        raise NoInfiniteWidthLimit(
            f"takes [samples, channels, {axes} axes of positions], not {k.positions()}"
            f"{' flattened' if k.flat else ''} with channels on axis {k.channel_axis}"
        )


def padded(k: Kernels, sides: Sequence[int], mode: str) -> Kernels:
    """`sides`: before and after, last axis first, as torch.nn.functional.pad."""
    axes = len(k.space)
    if len(sides) % 2 or len(sides) > 2 * axes or k.flat or k.channel_axis != 1:
        raise NoInfiniteWidthLimit("only positions may be padded, not channels or samples")
    nngp, ntk, mean, space = k.nngp, k.ntk, k.mean, list(k.space)
    for i in range(len(sides) // 2):
        before, after = sides[2 * i : 2 * i + 2]
        dims = position_dims(axes, k.full)[axes - 1 - i]
        nngp, ntk = (pad(t, dims, before, after, mode) for t in (nngp, ntk))
        if mean is not None:
            mean = pad(mean, position_dims(axes, False)[axes - 1 - i], before, after, mode)
        space[axes - 1 - i] += before + after
    # A padded zero is no Gaussian variable of the variance of its neighbours, but of variance 0: still Gaussian.
    return replace(k, nngp=nngp, ntk=ntk, mean=mean, space=tuple(space))


@rule(nn.ZeroPad1d, nn.ZeroPad2d, role="linear")
def zero_pad(module: nn.ZeroPad2d, k: Kernels) -> Kernels:
    return padded(k, module.padding, "constant")


@rule(nn.CircularPad1d, nn.CircularPad2d, role="linear")
def circular_pad(module: nn.CircularPad2d, k: Kernels) -> Kernels:
    return padded(k, module.padding, "circular")


@function_rule(functional.pad, role="linear")
def _pad(k: Kernels, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Kernels:
    if mode == "constant" and value:
        raise NoInfiniteWidthLimit("padding with a constant other than 0 has no limit here")
    return padded(k, list(pad), mode)


def pooled(k: Kernels, pools: Sequence[OneAxis]) -> Kernels:
    """Apply one linear map of positions along each axis, to x and x' alike."""
    axes = len(k.space)
    if axes and not k.full:
        raise NoInfiniteWidthLimit("pooling needs the covariances between positions: register it with mixes=True")
    nngp, ntk, mean = k.nngp, k.ntk, k.mean
    for axis, pool in enumerate(pools):
        for dim in position_dims(axes, True)[axis]:
            nngp, ntk = pool(nngp, dim), pool(ntk, dim)
        if mean is not None:
            mean = pool(mean, axis - axes)
    return replace(k, nngp=nngp, ntk=ntk, mean=mean, space=tuple(nngp.shape[-axes:]))


def _both(value: Any, axes: int) -> tuple[Any, ...]:
    if isinstance(value, tuple | list):
        return tuple(value) if len(value) == axes else tuple(value) * axes
    return (value,) * axes


def average_pools(
    space: tuple[int, ...],
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> list[Pool]:
    """torch's average pooling as one map an axis."""
    axes = len(space)
    sizes = _both(size, axes)
    strides = _both(size if stride is None or stride == [] else stride, axes)
    paddings = _both(padding, axes)
    if any(length + 2 * p < s for length, p, s in zip(space, paddings, sizes, strict=True)):
        raise NoInfiniteWidthLimit(f"the pooling window {sizes} does not fit into {space}")
    divisors = [None] * axes if divisor_override is None else [float(divisor_override)] + [1.0] * (axes - 1)
    return [
        average_pool(*axis[:4], ceil_mode, count_include_pad, axis[4])
        for axis in zip(space, sizes, strides, paddings, divisors, strict=True)
    ]


@rule(nn.AvgPool1d, nn.AvgPool2d, role="linear", mixes=True)
def average(module: nn.AvgPool2d, k: Kernels) -> Kernels:
    axes = 2 if isinstance(module, nn.AvgPool2d) else 1
    _images(k, axes)
    override = getattr(module, "divisor_override", None)
    return pooled(
        k,
        average_pools(
            k.space,
            module.kernel_size,
            module.stride,
            module.padding,
            module.ceil_mode,
            module.count_include_pad,
            override,
        ),
    )


@function_rule(functional.avg_pool1d, role="linear", mixes=True)
def _avg_pool1d(k: Kernels, kernel_size: Any, *args: Any, **kwargs: Any) -> Kernels:
    _images(k, 1)
    return pooled(k, average_pools(k.space, kernel_size, *args, **kwargs))


@function_rule(functional.avg_pool2d, role="linear", mixes=True)
def _avg_pool2d(k: Kernels, kernel_size: Any, *args: Any, **kwargs: Any) -> Kernels:
    _images(k, 2)
    return pooled(k, average_pools(k.space, kernel_size, *args, **kwargs))


def adaptive(k: Kernels, outputs: Any, axes: int) -> Kernels:
    """torch's adaptive average pooling; `outputs` None keeps an axis."""
    _images(k, axes)
    counts = [old if new is None else new for new, old in zip(_both(outputs, axes), k.space, strict=True)]
    if counts == [1] * axes:
        return replace(_mean(k, list(range(axes))), space=(1,) * axes).with_axes(axes)
    maps: list[OneAxis] = []
    for length, count in zip(k.space, counts, strict=True):
        if length % count == 0:
            size = length // count
            maps.append(Pool(Window(size, size), (float(size),) * count))
        else:
            maps.append(_matrix(length, count))
    return pooled(k, maps)


def _matrix(length: int, count: int) -> OneAxis:
    return lambda t, dim: apply_matrix(t, dim, adaptive_matrix(length, count, t))


@rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, role="linear", mixes=True)
def adaptive_average(module: nn.AdaptiveAvgPool2d, k: Kernels) -> Kernels:
    return adaptive(k, module.output_size, 2 if isinstance(module, nn.AdaptiveAvgPool2d) else 1)


@function_rule(functional.adaptive_avg_pool1d, role="linear", mixes=True)
def _adaptive_1d(k: Kernels, output_size: Any) -> Kernels:
    return adaptive(k, output_size, 1)


@function_rule(functional.adaptive_avg_pool2d, role="linear", mixes=True)
def _adaptive_2d(k: Kernels, output_size: Any) -> Kernels:
    return adaptive(k, output_size, 2)


def _mean(k: Kernels, over: list[int]) -> Kernels:
    """Average over the spatial axes `over`, which go."""
    axes = len(k.space)
    if not k.full:
        raise NoInfiniteWidthLimit("pooling needs the covariances between positions: register it with mixes=True")
    nngp, ntk = k.nngp, k.ntk
    if len(over) == axes:
        nngp, ntk = (mean_over_positions(t, axes, True) for t in (nngp, ntk))
    else:
        dims = [dim for axis in over for dim in position_dims(axes, True)[axis]]
        nngp, ntk = nngp.mean(dims), ntk.mean(dims)
    mean = None if k.mean is None else k.mean.mean([axis - axes for axis in over])
    space = tuple(length for axis, length in enumerate(k.space) if axis not in over)
    before = sum(1 for axis in over if axis < k.channel_axis - 1)
    axis = k.channel_axis - before
    return replace(k, nngp=nngp, ntk=ntk, mean=mean, space=space, full=bool(space), channel_axis=axis)


def _reduce(k: Kernels, dim: Any, keepdim: bool, total: bool) -> Kernels:
    axes = 2 + len(k.space)
    if k.flat or dim is None:
        raise NoInfiniteWidthLimit("a mean or sum must name the positions' axes: channels and samples stay apart")
    dims = sorted(d % axes for d in (dim if isinstance(dim, tuple | list) else [dim]))
    if 0 in dims or k.channel_axis in dims:
        raise NoInfiniteWidthLimit("a mean or sum may run over positions only, not over samples or channels")
    over = [d - 1 if d < k.channel_axis else d - 2 for d in dims]
    result = _mean(k, over)
    if total:
        count = 1
        for axis in over:
            count *= k.space[axis]
        mean = None if result.mean is None else result.mean * count
        result = replace(result, nngp=result.nngp * count**2, ntk=result.ntk * count**2, mean=mean)
    if keepdim:
        if len(over) != len(k.space):
            raise NoInfiniteWidthLimit("keepdim=True needs a mean over all positions")
        result = replace(result, space=(1,) * len(over), channel_axis=k.channel_axis).with_axes(len(over))
    return result


@function_rule(torch.mean, "mean", role="linear", mixes=True)
def _mean_function(k: Kernels, dim: Any = None, keepdim: bool = False, **_: Any) -> Kernels:
    return _reduce(k, _.get("axis", dim), keepdim, total=False)


@function_rule(torch.sum, "sum", role="linear", mixes=True)
def _sum_function(k: Kernels, dim: Any = None, keepdim: bool = False, **_: Any) -> Kernels:
    return _reduce(k, _.get("axis", dim), keepdim, total=True)
