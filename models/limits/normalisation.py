"""Rules of layer, group and batch normalisation: over many units, means and variances are expectations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits.positions import all_dims
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit, equal_positions


def normalised(
    k: Kernels, statistics: Kernels, eps: float, over_positions: bool, gain: bool, bias: bool, per_position: bool
) -> Kernels:
    """(h - mean) / sqrt(variance + eps) over all units, with gain 1 and bias 0 that may be trained.

    Mean and variance over many units, and over positions if these are normalised together, are expectations, and
    their derivatives vanish in the limit. The gain's derivative is the result itself, and the graph keeps it apart
    until a layer sums over units: an activation in between is not independent of it.
    """
    axes = len(k.space)
    centre = [_averaged(mean, k, over_positions) for mean in _both_means(statistics)]
    factors = []
    for q, mean in zip((statistics.q1, statistics.q2), centre, strict=True):
        factors.append((_averaged(q, k, over_positions) - mean * mean).clamp_min(0).add(eps).rsqrt())
    nngp = k.nngp
    own = _both_means(k)
    if not (k.gaussian and statistics.gaussian):  # E[(h - c) (h' - c')]
        nngp = nngp - own[0] * centre[1] - centre[0] * own[1] + centre[0] * centre[1]
    nngp, ntk = ((t * factors[0]).mul_(factors[1]) for t in (nngp, k.ntk))
    own_mean = None if k.mean is None else (own[0] - centre[0]) * factors[0]
    if bias:
        if per_position and k.full:  # biases of two positions are different parameters
            equal_positions(ntk, axes).add_(1.0)
        else:
            ntk.add_(1.0)
    if gain and k.gain and k.gain_each != per_position:
        raise NoInfiniteWidthLimit("follows a trained gain of another shape: freeze one of the two gains")
    each = per_position if gain else k.gain_each
    return replace(k, nngp=nngp, ntk=ntk, mean=own_mean, gain=k.gain + gain, gain_each=each)


def _both_means(k: Kernels) -> tuple[Tensor, Tensor]:
    """E[h(x)] and E[h(x')] over units, that broadcast with the covariances."""
    if k.means is not None:
        return k.means
    if k.gaussian:
        return torch.zeros_like(k.q1), torch.zeros_like(k.q2)
    raise NoInfiniteWidthLimit(
        "normalisation needs the mean of its input, which the rule of a layer before it does not say: let that rule "
        "return `mean`"
    )


def _averaged(q: Tensor, k: Kernels, over_positions: bool) -> Tensor:
    axes = len(k.space)
    return q.mean(all_dims(axes, k.full), keepdim=True) if axes and over_positions else q


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


@rule(nn.LayerNorm, role="linear", variances=True, means=True, joint=True)
def layer_norm(module: nn.LayerNorm, k: Kernels, joint: Kernels) -> Kernels:
    return _normalisation(k, joint, tuple(module.normalized_shape), module.eps, module.weight, module.bias)


@function_rule(functional.layer_norm, role="linear", variances=True, means=True, joint=True)
def _layer_norm_function(
    k: Kernels,
    normalized_shape: tuple[int, ...],
    weight: None = None,
    bias: None = None,
    eps: float = 1e-5,
    joint: Kernels | None = None,
) -> Kernels:
    return _normalisation(k, joint or k, tuple(normalized_shape), eps, weight, bias)


@rule(nn.GroupNorm, role="linear", variances=True, means=True, joint=True)
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
    mean = None if k.mean is None else k.mean * square**0.5
    return replace(k, nngp=nngp, ntk=ntk, mean=mean, gain=k.gain + gain)
