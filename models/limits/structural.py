"""Rules of the layers with weights, of normalisation and dropout, and of those that only rename axes."""

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
from models.limits.positions import Window, all_dims, mean_over_positions, position_dims, window_sum
from models.limits.registry import function_rule, rule
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
    return replace(k, nngp=k.nngp * square, ntk=k.ntk * square)


def dropout(k: Kernels, p: float, whole_channels: bool) -> Kernels:
    """In training mode an input's own entries gain 1 / (1 - p); two inputs have independent masks."""
    if p == 0:
        return k
    if p >= 1:
        raise NoInfiniteWidthLimit("dropout of everything (p = 1) leaves no network")
    factor = 1 / (1 - p)
    nngp, ntk = (_scale_same(t, k, factor, whole_channels) for t in (k.nngp, k.ntk))
    return replace(k, nngp=nngp, ntk=ntk, gaussian=False)


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


@function_rule("transpose", torch.transpose, role="linear")
def _transpose(k: Kernels, first: int, second: int) -> Kernels:
    order = list(range(2 + (0 if k.flat else len(k.space))))
    order[first], order[second] = order[second], order[first]
    return _permute(k, *order)


def _unchanged(k: Kernels, *args: Any, **kwargs: Any) -> Kernels:
    return k


function_rule("contiguous", "clone", torch.clone, role="linear")(_unchanged)


def normalised(
    k: Kernels, statistics: Kernels, eps: float, over_positions: bool, gain: bool, bias: bool, per_position: bool
) -> Kernels:
    """(h - mean) / sqrt(variance + eps) over all units, with gain 1 and bias 0 that may be trained.

    h has mean 0 and, over many units, the variance q; derivatives of mean and variance vanish in the limit. The gain's
    derivative is h itself, and the graph keeps it apart until a layer sums over units: an activation in between is
    not independent of it.
    """
    if not (k.gaussian and statistics.gaussian):
        raise NoInfiniteWidthLimit(
            "normalisation has a limit where its inputs have mean zero, after a layer with random weights: "
            "put it before the activation"
        )
    axes = len(k.space)
    factors = []
    for q in (statistics.q1, statistics.q2):
        mean = q.mean(all_dims(axes, k.full), keepdim=True) if axes and over_positions else q
        factors.append((mean + eps).rsqrt())
    nngp, ntk = ((t * factors[0]).mul_(factors[1]) for t in (k.nngp, k.ntk))
    if bias:
        if per_position and k.full:  # biases of two positions are different parameters
            equal_positions(ntk, axes).add_(1.0)
        else:
            ntk.add_(1.0)
    if gain and k.gain and k.gain_each != per_position:
        raise NoInfiniteWidthLimit("follows a trained gain of another shape: freeze one of the two gains")
    each = per_position if gain else k.gain_each
    return replace(k, nngp=nngp, ntk=ntk, gain=k.gain + gain, gain_each=each)


def _normalisation(
    k: Kernels, joint: Kernels, shape: tuple[int, ...], eps: float, weight: Tensor | None, bias: Tensor | None
) -> Kernels:
    """Layer normalisation over the last axes, whose sizes are `shape`."""
    if joint.space != k.space:
        raise NoInfiniteWidthLimit("normalise branches before flattening and concatenating them")
    sizes = [joint.units] if k.flat else list(k.space)
    if not k.flat:
        sizes.insert(k.channel_axis - 1, joint.channels)
    if list(shape) != sizes[len(sizes) - len(shape) :]:
        raise NoInfiniteWidthLimit(f"normalises axes of sizes {list(shape)}, but its input has {sizes}")
    everything = len(shape) == len(sizes)
    if not everything and (k.channel_axis != len(sizes) or len(shape) != 1):
        raise NoInfiniteWidthLimit("layer normalisation must run over the channels, alone or with all positions")
    gain, shift = (p is not None and p.requires_grad for p in (weight, bias))
    over_positions = everything and bool(k.space)
    return normalised(k, joint, eps, over_positions, gain, shift, over_positions)


@rule(nn.LayerNorm, role="linear", variances=True, joint=True)
def layer_norm(module: nn.LayerNorm, k: Kernels, joint: Kernels) -> Kernels:
    return _normalisation(k, joint, tuple(module.normalized_shape), module.eps, module.weight, module.bias)


@function_rule(functional.layer_norm, role="linear", variances=True, joint=True)
def _layer_norm_function(
    k: Kernels,
    normalized_shape: tuple[int, ...],
    weight: None = None,
    bias: None = None,
    eps: float = 1e-5,
    joint: Kernels | None = None,
) -> Kernels:
    return _normalisation(k, joint or k, tuple(normalized_shape), eps, weight, bias)


@rule(nn.GroupNorm, role="linear", variances=True, joint=True)
def group_norm(module: nn.GroupNorm, k: Kernels, joint: Kernels) -> Kernels:
    """Groups of many channels each: every group's variance is that of all channels."""
    if k.channel_axis != 1 or joint.channels != module.num_channels or k.flat:
        raise NoInfiniteWidthLimit(
            f"takes [samples, {module.num_channels} channels, positions], not {joint.channels} channels "
            f"on axis {k.channel_axis}"
        )
    if joint is not k and module.num_groups > 1 and joint.channels != k.channels:
        raise NoInfiniteWidthLimit("groups of concatenated branches differ: use one group, or normalise before")
    trained = [p is not None and p.requires_grad for p in (module.weight, module.bias)]
    return normalised(k, joint, module.eps, bool(k.space), trained[0], trained[1], per_position=False)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, role="linear")
def batch_norm(module: nn.BatchNorm1d, k: Kernels) -> Kernels:
    """In evaluation mode, with the running statistics of a new module."""
    if module.training or module.running_mean is None or module.running_var is None:
        raise NoInfiniteWidthLimit(
            "batch normalisation in training mode couples the inputs of a batch, so there is no kernel of two "
            "inputs: call .eval(), or use torch.nn.LayerNorm"
        )
    variance = module.running_var
    if bool((module.running_mean != 0).any()) or bool((variance != variance[0]).any()):
        raise NoInfiniteWidthLimit("batch normalisation must hold the running statistics of a new module")
    square = 1 / (float(variance[0]) + module.eps)
    nngp, ntk = k.nngp * square, k.ntk * square
    gain = module.weight is not None and module.weight.requires_grad
    if gain and k.gain_each:
        raise NoInfiniteWidthLimit("follows a trained gain of another shape: freeze one of the two gains")
    if module.bias is not None and module.bias.requires_grad:
        ntk.add_(1.0)
    return replace(k, nngp=nngp, ntk=ntk, gain=k.gain + gain)


def merged(*parts: Kernels) -> Kernels:
    """The average over the units of concatenated branches, for a layer that sums over all of them."""
    parts = tuple(_over_features(k) if k.flat else k for k in parts)
    layouts = {(k.space, k.full, k.channel_axis) for k in parts}
    if len(layouts) > 1:
        raise NoInfiniteWidthLimit("concatenated branches must have the same positions")
    units = sum(k.channels for k in parts)

    def average(tensors: list[Tensor]) -> Tensor:
        return sum(t * (k.channels / units) for t, k in zip(tensors, parts, strict=True))  # type: ignore[return-value]

    first = parts[0]
    variances = None
    if all(k.variances is not None for k in parts):
        variances = average([k.q1 for k in parts]), average([k.q2 for k in parts])
    return replace(
        first,
        nngp=average([k.nngp for k in parts]),
        ntk=average([k.ntk for k in parts]),
        channels=units,
        gaussian=all(k.gaussian for k in parts),
        variances=variances,
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
    return replace(first, nngp=first.nngp + second.nngp, ntk=first.ntk + second.ntk, gaussian=gaussian, variances=None)
