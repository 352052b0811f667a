"""Rules: how the gradients of a known call's parameters follow from its input and from the gradient of its output.

Every rule can write per-sample gradients (``gradients``). A linear map, ``z_t = W h_t`` at T tokens or positions t, can
also leave them as factors (``pairs``), since with D the gradient of a network output with respect to z

    K(x, x') = sum_{t,s} (h_t . h'_s) (D_t . D'_s):

two Gram matrices instead of gradients of the size of W (Novak, Sohl-Dickstein and Schoenholz 2022, "Fast finite width
neural tangent kernel", structured derivatives). With one position that is always cheaper; otherwise FLOPs decide.

Shapes: S samples (of all members), c output gradients each, inputs x [S, ...], D [S, c, ...].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]

FEW_CHANNELS = 32
"""Below this many columns one product for the whole filter is faster than one for each of its rows."""


ONEDNN_POSITIONS = 64
"""At fewer positions oneDNN's weight gradients are slower than matrix products."""
WRITTEN = 2**21
"""Bytes of weight gradients that oneDNN makes at once: its buffers have their size, and copies are from the cache."""


@dataclass(frozen=True)
class Pairs:
    """Factors of a linear map: inputs h [S, T, p] (or token numbers [S, T]) and output gradients D [S, c, T, q]."""

    h: Tensor
    D: Tensor


@dataclass(frozen=True)
class Size:
    """A linear map's ``groups`` independent maps from p to q numbers, at ``positions`` places of a sample."""

    positions: int
    p: int
    q: int
    groups: int = 1

    @property
    def parameters(self) -> int:
        return self.p * self.q * self.groups


class Rule:
    """``size`` and ``pairs`` only where the map is linear in tokens or positions."""

    def size(self, x: Shape, out: Shape, weight: Shape) -> Size | None:
        """None: the gradients are no larger than the output, and are the only form."""
        return None

    def pairs(self, x: Tensor, D: Tensor, weight: Shape) -> list[Pairs]:
        raise NotImplementedError

    def gradients(self, x: Tensor, D: Tensor, weight: Shape, into: list[Tensor] | None = None) -> list[Tensor]:
        """Of the weight: pieces [S, c, size], which together hold each entry's gradient once; a rule may write them
        into tensors that are given for them."""
        raise NotImplementedError

    def bias(self, D: Tensor, bias: Shape) -> Tensor:
        """[S, c, size]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Dense(Rule):
    """h W' or h W for h [S, ..., p]."""

    def size(self, x: Shape, out: Shape, weight: Shape) -> Size:
        return Size(math.prod(x[1:-1]), x[-1], out[-1])

    def pairs(self, x: Tensor, D: Tensor, weight: Shape) -> list[Pairs]:
        return [
            Pairs(x.flatten(1, -2) if x.ndim > 2 else x[:, None], D.flatten(2, -2) if D.ndim > 3 else D[:, :, None])
        ]

    def gradients(self, x: Tensor, D: Tensor, weight: Shape, into: list[Tensor] | None = None) -> list[Tensor]:
        (both,) = self.pairs(x, D, weight)
        return [_products(both.D.mT, both.h, None if into is None else into[0])]

    def bias(self, D: Tensor, bias: Shape) -> Tensor:
        return D if D.ndim == 3 else D.flatten(2, -2).sum(2)


@dataclass(frozen=True)
class Convolution(Rule):
    """A two-dimensional convolution of [S, C, H, W]; ``padding``: left, right, top, bottom."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def size(self, x: Shape, out: Shape, weight: Shape) -> Size:
        return Size(math.prod(out[2:]), weight[1] * math.prod(self.kernel), out[1] // self.groups, self.groups)

    def pairs(self, x: Tensor, D: Tensor, weight: Shape) -> list[Pairs]:
        patches = self._patches(x).unflatten(1, (self.groups, -1)).mT
        D = D.flatten(3).unflatten(2, (self.groups, -1)).mT
        return [Pairs(patches[:, group], D[:, :, group]) for group in range(self.groups)]

    def gradients(self, x: Tensor, D: Tensor, weight: Shape, into: list[Tensor] | None = None) -> list[Tensor]:
        if self._by_convolution(D):
            found = x.new_empty(*D.shape[:2], math.prod(weight)) if into is None else into[0]
            step = max(1, WRITTEN // (found[0].nbytes or 1))
            for part, one, two in zip(found.split(step), x.split(step), D.split(step), strict=True):
                part.copy_(self._grouped(one, two, weight))
            return [found]
        pieces: list[Tensor] = []
        for group in range(self.groups):
            channels = slice(group * weight[1], (group + 1) * weight[1])
            units = D.shape[2] // self.groups
            own = D[:, :, group * units : (group + 1) * units]
            pieces += self._group(x[:, channels], own, None if into is None else into[len(pieces) :])
        return pieces

    def _by_convolution(self, D: Tensor) -> bool:
        """oneDNN, which is on CPUs and has no float64, is twice as fast as matrix products for all but small images."""
        fast = D.device.type == "cpu" and D.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        return fast and math.prod(D.shape[3:]) >= ONEDNN_POSITIONS and (self.groups == 1 or D.shape[1] == 1)

    def _grouped(self, x: Tensor, D: Tensor, weight: Shape) -> Tensor:
        """The weight gradient of one convolution in which every sample is a group (Rochette, Manoel and Tramel 2019,
        "Efficient per-example gradient computations in convolutional neural networks")."""
        left, right, top, bottom = self.padding
        if (left, top) != (right, bottom):
            x, left, top = F.pad(x, self.padding), 0, 0
        samples, c, units = D.shape[:3]
        one, two = (t.reshape(1, -1, *t.shape[-2:]) for t in (D, x))
        shape = x.new_empty(1).expand(samples * c * units, *weight[1:])  # only its shape is read
        found: Tensor = torch.ops.aten.convolution_backward(
            one, two, shape, None, self.stride, (top, left), self.dilation, False, (0, 0), samples * self.groups,
            (False, True, False),
        )[1]  # fmt: skip
        return found.reshape(samples, c, -1)

    def _group(self, x: Tensor, D: Tensor, into: list[Tensor] | None) -> list[Tensor]:
        """A product for each row of the filter: with the columns' shifted copies side by side, a row is an offset."""
        shifted = self._columns(x, D.shape[4])
        rows = [
            shifted[:, :, top : top + self.stride[0] * (D.shape[3] - 1) + 1 : self.stride[0]].flatten(2)
            for top in range(0, self.kernel[0] * self.dilation[0], self.dilation[0])
        ]
        if shifted.shape[1] < FEW_CHANNELS:
            rows = [torch.cat(rows, 1)]
        flat = D.flatten(3)
        return [_products(flat, row.mT, None if into is None else into[i]) for i, row in enumerate(rows)]

    def _columns(self, x: Tensor, width: int) -> Tensor:
        """[S, C, H, W] -> [S, kernel width * C, padded H, width of the output]."""
        left, _, top, bottom = self.padding
        if self.kernel[1] == 1 and self.stride[1] == 1 and not any(self.padding):
            return x
        samples, channels, rows, cols = x.shape
        shape = samples, self.kernel[1], channels, rows + top + bottom, width
        shifted = x.new_zeros(shape) if any(self.padding) else x.new_empty(shape)
        step = self.stride[1]
        for j in range(self.kernel[1]):
            shift = j * self.dilation[1] - left  # output column o reads input column step * o + shift
            first, last = max(0, -(shift // step)), min(width, (cols - 1 - shift) // step + 1)
            if first < last:
                source = x[:, :, :, step * first + shift : step * (last - 1) + shift + 1 : step]
                shifted[:, j, :, top : top + rows, first:last] = source
        return shifted.flatten(1, 2)

    def _patches(self, x: Tensor) -> Tensor:
        """[S, C * kernel area, positions], channels first."""
        return F.unfold(F.pad(x, self.padding), self.kernel, dilation=self.dilation, stride=self.stride)

    def bias(self, D: Tensor, bias: Shape) -> Tensor:
        return D.sum((-2, -1))


@dataclass(frozen=True)
class Elementwise(Rule):
    """weight * h + bias, both broadcast; ``normalise``: x -> h. Normalisation layers, gains, biases, embeddings of
    positions."""

    normalise: Callable[[Tensor], Tensor]
    axis: int | None = None
    """The axis of h on which the parameters act; None: they broadcast."""

    def gradients(self, x: Tensor, D: Tensor, weight: Shape, into: list[Tensor] | None = None) -> list[Tensor]:
        return [self.bias(D * self.normalise(x)[:, None], weight)]

    def bias(self, D: Tensor, bias: Shape) -> Tensor:
        own = D.shape[2:]
        if self.axis is not None:
            shape = tuple(size if 1 + i == self.axis else 1 for i, size in enumerate(own))
        else:
            shape = ((1,) * (1 + len(own) - len(bias)) + tuple(bias))[1:]  # the first is the samples'
        summed = [2 + i for i, (size, entries) in enumerate(zip(shape, own, strict=True)) if size == 1 and entries != 1]
        return (D.sum(summed) if summed else D).reshape(*D.shape[:2], -1)


@dataclass(frozen=True)
class Lookup(Rule):
    """Rows of a table for token numbers x [S, ...]: a linear map of one-hot vectors."""

    padding: int | None

    def size(self, x: Shape, out: Shape, weight: Shape) -> Size:
        return Size(math.prod(x[1:]), weight[0], weight[1])

    def pairs(self, x: Tensor, D: Tensor, weight: Shape) -> list[Pairs]:
        tokens, D = x.flatten(1) if x.ndim > 1 else x[:, None], D.reshape(*D.shape[:2], -1, weight[1])
        if self.padding is not None:
            D = D * (tokens != self.padding)[:, None, :, None]
        return [Pairs(tokens, D)]

    def gradients(self, x: Tensor, D: Tensor, weight: Shape, into: list[Tensor] | None = None) -> list[Tensor]:
        (both,) = self.pairs(x, D, weight)
        table = D.new_zeros(*D.shape[:2], *weight)
        index = both.h[:, None, :, None].expand_as(both.D)
        return [table.scatter_add_(2, index, both.D).flatten(2)]


def _products(D: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
    """D [S, c, q, T], h [S, T, p] -> sum over T, [S, c, q * p]; ``out``: where to."""
    (samples, c, q, positions), p = D.shape, h.shape[2]
    D = D.reshape(samples, c * q, positions)
    if out is not None and out.is_contiguous():
        torch.bmm(D, h, out=out.view(samples, c * q, p))
        return out
    return torch.bmm(D, h).view(samples, c, q * p)


# What a call's arguments mean: the rule, its input, its weight and its bias; None where the rule does not hold.
Match = tuple[Rule, Any, Any, Any] | None


def _linear(input: Any, weight: Any, bias: Any = None) -> Match:
    return (Dense(), input, weight, bias) if input.ndim > 1 and weight.ndim == 2 else None


def _matmul(input: Any, other: Any) -> Match:
    return (Dense(), input, other, None) if input.ndim > 1 and other.ndim == 2 else None


def _conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Match:
    if input.ndim != 4:
        return None
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    else:
        rows, cols = (0, 0) if padding == "valid" else _pair(padding)
        sides = (cols, cols, rows, rows)
    return Convolution(kernel, stride, sides, dilation, groups), input, weight, bias


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Match:
    if len(normalized_shape) >= input.ndim:
        return None
    rule = Elementwise(lambda x: F.layer_norm(x, normalized_shape, eps=eps))
    return rule, input, weight, bias


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Match:
    if len(normalized_shape) >= input.ndim:
        return None
    return Elementwise(lambda x: F.rms_norm(x, normalized_shape, eps=eps)), input, weight, None


def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Match:
    return Elementwise(lambda x: F.group_norm(x, num_groups, eps=eps), axis=1), input, weight, bias


def _batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Match:  # fmt: skip
    rule = Elementwise(lambda x: F.batch_norm(x, running_mean, running_var, eps=eps), axis=1)
    return rule, input, weight, bias


def _embedding(
    input: Any, weight: Any, padding_idx: int | None = None, max_norm: Any = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Match:  # fmt: skip
    if max_norm is not None or scale_grad_by_freq:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return Lookup(padding_idx), input, weight, None


def _mul(input: Any, other: Any) -> Match:
    return (Elementwise(lambda h: h), input, other, None) if _broadcasts(other, input) else None


def _add(input: Any, other: Any) -> Match:
    return (Elementwise(lambda h: h), input, None, other) if _broadcasts(other, input) else None


def _broadcasts(small: Any, large: Any) -> bool:
    """Whether the parameter ``small`` acts on each sample of ``large`` alike, and does not enlarge it."""
    if not (isinstance(small, Tensor) and isinstance(large, Tensor)) or small.ndim > large.ndim:
        return False
    shape = (1,) * (large.ndim - small.ndim) + tuple(small.shape)
    return shape[0] == 1 and all(a in (1, b) for a, b in zip(shape, large.shape, strict=True))


MATCHERS: dict[Any, Callable[..., Match]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    torch.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.embedding: _embedding,
    torch.mul: _mul,
    Tensor.mul: _mul,
    torch.add: _add,
    Tensor.add: _add,
}

COMMUTE = {torch.mul, Tensor.mul, torch.add, Tensor.add}
"""Calls of two arguments of which the rule wants the parameter second."""
