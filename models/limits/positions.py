"""What convolution and pooling do to covariances: sums along positions, axis by axis.

A convolution with independent weights adds covariances along the joint diagonal of positions p and p' (Novak et al.
2019, eq. 9): slices and additions, no convolution call, and one axis after the other. Pooling adds along p and p'
separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis, as torch's convolutions and pools have it."""

    size: int
    stride: int = 1
    dilation: int = 1
    before: int = 0  # positions added at either end
    after: int = 0
    mode: str = "constant"  # or what torch.nn.functional.pad calls the padding

    @property
    def trivial(self) -> bool:
        return self == Window(1)

    def outputs(self, length: int) -> int:
        """Positions of the window on an axis of `length`; below 1 where it does not fit."""
        return (length + self.before + self.after - self.dilation * (self.size - 1) - 1) // self.stride + 1


def window_sum(kernel: Tensor, dims: tuple[int, ...], window: Window) -> Tensor:
    """Sum the window over `kernel`, which it slides along all `dims` (of one length) at the same time."""
    if window.trivial:
        return kernel
    if window.mode != "constant" and window.before + window.after:
        kernel = pad(kernel, dims, window.before, window.after, window.mode)
        window = Window(window.size, window.stride, window.dilation)
    length = kernel.shape[dims[0]]
    count = window.outputs(length)
    pieces = []
    for offset in range(window.size):
        shift = offset * window.dilation - window.before
        low = max(0, -(shift // window.stride))
        high = min(count, (length - 1 - shift) // window.stride + 1)
        if low < high:
            pieces.append((low, high, low * window.stride + shift, window.stride))
    pieces.sort(key=lambda piece: piece[0] - piece[1])
    total: Tensor | None = None
    for low, high, start, stride in pieces:
        part = kernel
        for dim in dims:
            part = _cut(part, dim, start, high - low, stride)
        if total is None and high - low == count:
            total = part.clone()
            continue
        if total is None:
            total = kernel.new_zeros([count if i - kernel.ndim in dims else s for i, s in enumerate(kernel.shape)])
        target = total
        for dim in dims:
            target = target.narrow(dim, low, high - low)
        target.add_(part)
    if total is None:
        return kernel.new_zeros([count if i - kernel.ndim in dims else s for i, s in enumerate(kernel.shape)])
    return total


def _cut(t: Tensor, dim: int, start: int, count: int, stride: int) -> Tensor:
    index = [slice(None)] * t.ndim
    index[dim] = slice(start, start + (count - 1) * stride + 1, stride)
    return t[tuple(index)]


def pad(kernel: Tensor, dims: tuple[int, ...], before: int, after: int, mode: str) -> Tensor:
    """Pad along `dims`: every new position is a copy of an old one, or zero. Negative numbers crop."""
    length = kernel.shape[dims[0]]
    if mode == "constant":
        sides = [0] * (2 * kernel.ndim)
        for dim in dims:
            sides[-2 * dim - 2 : -2 * dim] = [before, after]
        return functional.pad(kernel, sides)
    source = torch.arange(length, dtype=torch.float32)[None, None]
    index = functional.pad(source, (before, after), mode=mode)[0, 0].long().to(kernel.device)
    for dim in dims:
        kernel = kernel.index_select(dim, index)
    return kernel


@dataclass(frozen=True)
class Pool:
    """An average (or sum) over a window along one axis."""

    window: Window
    divisors: tuple[float, ...]  # of each output

    def __call__(self, kernel: Tensor, dim: int) -> Tensor:
        total = window_sum(kernel, (dim,), self.window)
        if len(set(self.divisors)) == 1:
            return total / self.divisors[0] if self.divisors[0] != 1 else total
        shape = [len(self.divisors)] + [1] * (-dim - 1)
        return total / torch.tensor(self.divisors, dtype=total.dtype).to(total.device).reshape(shape)


def average_pool(
    length: int, size: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool, divisor: float | None
) -> Pool:
    """torch's avg_pool along one axis of `length`; its own averages of ones tell what it divides by."""
    average = functional.avg_pool1d(torch.ones(1, 1, length), size, stride, padding, ceil_mode, count_include_pad)[0, 0]
    count = len(average)
    after = max(padding, (count - 1) * stride + size - length - padding)
    window = Window(size, stride, before=padding, after=after)
    if divisor is not None:
        return Pool(window, (divisor,) * count)
    valid = window_sum(torch.ones(length, dtype=torch.float64), (-1,), window)[:count]
    return Pool(window, tuple((valid / average.double()).round().tolist()))


def adaptive_matrix(length: int, outputs: int, like: Tensor) -> Tensor:
    """[outputs, length]: torch's adaptive average pooling along one axis."""
    eye = torch.eye(length, dtype=torch.float64)[:, None]
    return functional.adaptive_avg_pool1d(eye, outputs)[:, 0].T.to(like)


def apply_matrix(kernel: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """Apply a matrix [outputs, length] along one axis."""
    return (kernel.movedim(dim, -1) @ matrix.T).movedim(-1, dim)


def position_dims(axes: int, full: bool) -> list[tuple[int, ...]]:
    """For each spatial axis its dimensions in a kernel, counted from the end: (p,) or (p, p')."""
    if not full:
        return [(axis - axes,) for axis in range(axes)]
    return [(axis - 2 * axes, axis - axes) for axis in range(axes)]


def all_dims(axes: int, full: bool) -> list[int]:
    """All dimensions of positions, counted from the end."""
    return list(range(-axes * (2 if full else 1), 0))


def mean_over_positions(kernel: Tensor, axes: int, full: bool) -> Tensor:
    return kernel.mean(all_dims(axes, full)) if axes else kernel


def count(space: tuple[int, ...]) -> int:
    return math.prod(space)
