"""What is kept of a layer for each sample, and its share of the kernel from that.

m members, N samples, c output gradients a sample. The kernel of all c^2 pairs of outputs (``full``) is accumulated as a
matrix [m, n1 c, n2 c], sample-major; otherwise as [m, n1, n2], summed over the c gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.ntk.products import by_onednn, inner


@dataclass(frozen=True)
class Gradients:
    """Per-sample gradients J [m, N, c, P] of some parameters, for units of which they count ``scale`` each."""

    J: Tensor
    scale: float

    def rows(self, rows: slice) -> Gradients:
        return Gradients(self.J[:, rows], self.scale)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.J,)

    def holding(self, J: Tensor) -> Gradients:
        return Gradients(J, self.scale)

    def gram(self, other: Gradients, full: bool, workspace: float, onto: Tensor | None) -> Tensor:
        axes = (1, 2) if full else (2, 3)
        one, two = self.J.flatten(*axes), other.J.flatten(*axes)
        if onto is None:
            product = inner(one, two)
            return product if self.scale == 1 else product.mul_(self.scale**2)
        if by_onednn(one[0], two[0]):
            return onto.add_(inner(one, two), alpha=self.scale**2)
        return onto.baddbmm_(one, two.mT, alpha=self.scale**2)


@dataclass(frozen=True)
class Factors:
    """Of a linear map: inputs h [m, N, T, p], or token numbers [m, N, T], and output gradients D [m, N, c, T, q]; the
    scales of its weight and bias (0: frozen)."""

    h: Tensor
    D: Tensor
    scale: float
    bias_scale: float

    def rows(self, rows: slice) -> Factors:
        return Factors(self.h[:, rows], self.D[:, rows], self.scale, self.bias_scale)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.h, self.D)

    def holding(self, h: Tensor, D: Tensor) -> Factors:
        return Factors(h, D, self.scale, self.bias_scale)

    def gram(self, other: Factors, full: bool, workspace: float, onto: Tensor | None) -> Tensor:
        if self.D.shape[3] == 1:
            return self._single(other, full, onto)
        m, n1, c = self.D.shape[:3] if full else (*self.D.shape[:2], 1)
        kernel = self.D.new_zeros(m, n1 * c, other.D.shape[1] * c) if onto is None else onto
        pair = kernel.element_size() * m * self.D.shape[3] ** 2 * (2 * c**2 + 2)
        side = max(1, int((workspace / pair) ** 0.5))
        for r in _parts(n1, side):
            for s in _parts(other.D.shape[1], side):
                block = kernel[:, r.start * c : r.stop * c, s.start * c : s.stop * c]
                self.rows(r)._add_positions(block, other.rows(s), full)
        return kernel

    def _single(self, other: Factors, full: bool, onto: Tensor | None) -> Tensor:
        inputs = self._inputs(other)
        if not full:
            outputs = inner(self.D.flatten(2), other.D.flatten(2))
            return outputs.mul_(inputs) if onto is None else onto.addcmul_(inputs, outputs)
        (m, n1, c), n2 = self.D.shape[:3], other.D.shape[1]
        inputs = inputs[:, :, None, :, None]
        outputs = inner(self.D.flatten(3).flatten(1, 2), other.D.flatten(3).flatten(1, 2))
        pairs = outputs.view(m, n1, c, n2, c)
        if onto is None:
            pairs.mul_(inputs)
            return outputs
        onto.view(m, n1, c, n2, c).addcmul_(inputs, pairs)
        return onto

    def _inputs(self, other: Factors) -> Tensor:
        """scale^2 h . h' + bias_scale^2, [m, n1 T, n2 T]."""
        if self.h.ndim == 3:
            one, two = self.h.flatten(1), other.h.flatten(1)
            return (one[:, :, None] == two[:, None, :]).to(self.D) * self.scale**2
        one, two = self.h.flatten(1, 2), other.h.flatten(1, 2)
        if by_onednn(one[0], two[0]):
            return inner(one, two).mul_(self.scale**2).add_(self.bias_scale**2)
        bias = one.new_full((1, 1, 1), self.bias_scale**2)
        return torch.baddbmm(bias, one, two.mT, alpha=self.scale**2)

    def _add_positions(self, kernel: Tensor, other: Factors, full: bool) -> None:
        (m, n1, c, T, _), n2 = self.D.shape, other.D.shape[1]
        inputs = self._inputs(other)
        if full:
            outputs = inner(self.D.flatten(1, 3), other.D.flatten(1, 3)).view(m, n1, c, T, n2, c, T)
            outputs.mul_(inputs.view(m, n1, 1, T, n2, 1, T))
            kernel += outputs.sum((3, 6)).view(m, n1 * c, n2 * c)
        else:
            one, two = (D.transpose(2, 3).flatten(3).flatten(1, 2) for D in (self.D, other.D))
            kernel += inputs.mul_(inner(one, two)).view(m, n1, T, n2, T).sum((2, 4))


@dataclass(frozen=True)
class Channels:
    """Gradients G [m, N, q, p] that all outputs share, of the filter of each of q channels, and the read-out R [c, q]
    that makes them those of an output (``channels.py``)."""

    G: Tensor
    R: Tensor
    scale: float

    def rows(self, rows: slice) -> Channels:
        return Channels(self.G[:, rows], self.R, self.scale)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.G,)

    def holding(self, G: Tensor) -> Channels:
        return Channels(G, self.R, self.scale)

    def gram(self, other: Channels, full: bool, workspace: float, onto: Tensor | None) -> Tensor:
        m, n1, q, _ = self.G.shape
        n2, c = other.G.shape[1], len(self.R) if full else 1
        outputs = self.scale**2 * torch.einsum("kq,lq->qkl" if full else "kq,kq->q", self.R, self.R).reshape(q, c * c)
        kernel = self.G.new_zeros(m, n1 * c, n2 * c) if onto is None else onto
        target = kernel.view(m, n1, c, n2, c)
        for units in _parts(q, max(1, int(workspace / (kernel.element_size() * m * n1 * n2)))):
            one, two = (G[:, :, units].transpose(1, 2) for G in (self.G, other.G))
            pairs = (one @ two.mT).flatten(2).mT @ outputs[units]
            target += pairs.view(m, n1, n2, c, c).transpose(2, 3)
        return kernel


Kept = Gradients | Factors | Channels


def _parts(n: int, side: int) -> Iterator[slice]:
    for start in range(0, n, side):
        yield slice(start, min(start + side, n))


def gram(one: Kept, two: Kept, full: bool, workspace: float, onto: Tensor | None) -> Tensor:
    """One layer's share of the kernel between the samples of ``one`` and of ``two``, which are alike; added to
    ``onto``, if there is one.

    ``workspace``: bytes of pairs of positions that may be alive at once.
    """
    assert type(one) is type(two)
    return one.gram(two, full, workspace, onto)  # type: ignore[arg-type]
