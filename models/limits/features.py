"""Features of the inputs, and the covariances that a network starts from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.limits.graph import Step
from models.limits.state import Kernels, equal_positions


class Features:
    """Features of inputs as [n, channels, positions]."""

    def __init__(self, values: Tensor, space: tuple[int, ...], channel_axis: int) -> None:
        self.values, self.space, self.channel_axis = values, space, channel_axis

    def rows(self, cut: slice) -> Features:
        return Features(self.values[cut], self.space, self.channel_axis)


def channels(features: dict[Step, Tensor]) -> dict[Step, Features]:
    found = {}
    for step, x in features.items():
        axis = x.ndim - 1 if step.channels_last else 1
        moved = x.movedim(axis, 1)
        found[step] = Features(moved.flatten(2) if x.ndim > 2 else moved[..., None], tuple(moved.shape[2:]), axis)
    return found


def joined(first: Features, second: Features) -> Features:
    return Features(torch.cat([first.values, second.values]), first.space, first.channel_axis)


def gram(left: Features, right: Features, full: bool) -> Kernels:
    """Covariances of features: averages over channels."""
    x, y, space = left.values, right.values, left.space
    channels, positions = x.shape[1:]
    full = full and bool(space)
    if full:
        product = x.transpose(1, 2).reshape(-1, channels) @ y.transpose(0, 1).reshape(channels, -1)
        product = product.reshape(len(x), positions, len(y), positions).transpose(1, 2)
        nngp = product.reshape(len(x), len(y), *space, *space)
    elif space:
        nngp = torch.matmul(x.permute(2, 0, 1), y.permute(2, 1, 0)).permute(1, 2, 0)
        nngp = nngp.reshape(len(x), len(y), *space)
    else:
        nngp = x[..., 0] @ y[..., 0].T
    return _start(nngp / channels, left, full)


def own_gram(features: Features, full: bool) -> tuple[Kernels, Kernels | None]:
    """Each input's covariances with itself, at equal positions and, if asked for, between all."""
    x, space = features.values, features.space
    channels = x.shape[1]
    at_equal = ((x * x).sum(1) / channels).reshape(len(x), *space)
    equal = replace(_start(at_equal, features, False), diagonal=True, same="all")
    if not full or not space:
        return equal, None
    all_pairs = (x.transpose(1, 2) @ x / channels).reshape(len(x), *space, *space)
    equal_positions(all_pairs, len(space)).copy_(at_equal)
    return equal, replace(_start(all_pairs, features, True), same="all")


def _start(nngp: Tensor, features: Features, full: bool) -> Kernels:
    ntk = torch.zeros_like(nngp)
    return Kernels(nngp, ntk, features.values.shape[1], features.space, features.channel_axis, full=full)


def lift(q: Tensor, k: Kernels, first: bool) -> Tensor:
    """Variances [*pairs, *positions] shaped to broadcast against the covariances of `k`."""
    if not k.full:
        return q
    axes = len(k.space)
    ones = [1] * axes
    pairs = q.shape[: q.ndim - axes]
    return q.reshape(*pairs, *k.space, *ones) if first else q.reshape(*pairs, *ones, *k.space)
