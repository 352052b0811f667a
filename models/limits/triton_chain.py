"""Kernels of a chain of convolutions by Triton kernels: variances of each image first, then tiles of pairs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from models.blocks import chunks
from models.limits.chain import Chain, Stage
from models.limits.triton_tiles import run_stage
from models.limits.variances import deviations

SHARE = 2**28  # bytes of the variances' pass where no budget is given
WARPS = {16: 1, 32: 4, 64: 8}  # by the side of a tile: as compiled for sm_90, the fewest that spill few registers
LIVE = 4  # kernels of a tile alive at once


class _Stage(NamedTuple):
    """A stage as the kernels read it."""

    stage: Stage
    side: int  # of the torus of displacements: the image's, up to a multiple of the pooling window's
    before: int  # side of the torus of windows of the stage before; 0 for the first
    phases: bool  # sums over windows that another stage reads, not over all pixels
    group: tuple[int, int]  # displacements along either axis that one program adds
    groups: int
    geometry: Tensor
    numbers: Tensor

    @property
    def windows(self) -> int:
        return self.side // self.stage.pool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its result for one pair: NNGP and NTK."""
        outputs = self.stage.outputs
        return (2, self.windows, self.windows, 4, outputs, outputs) if self.phases else (2, self.groups)


class _Side(NamedTuple):
    images: Tensor  # scaled so that products are covariances
    deviations: list[Tensor]  # of each stage: [layers, n, size, size]
    own: tuple[Tensor, Tensor]  # [n]: kernels of each image with itself, averages over equal positions


class TritonChain:
    """One call of a chain's limit, on CUDA or in Triton's interpreter."""

    name = "triton"

    def __init__(self, chain: Chain, x1: Tensor, x2: Tensor | None, memory: int | None) -> None:
        self.chain, self.symmetric = chain, x2 is None
        self.stages = _prepared(chain, x1)
        self.memory = memory or SHARE
        self.left = self._side(x1)
        self.right = self.left if x2 is None else self._side(x2)

    def bytes_per_pair(self) -> float:
        """Memory that an entry of a tile takes: the sums of two consecutive stages."""
        sizes = [0, *(math.prod(stage.shape) for stage in self.stages)]
        live = max(a + b for a, b in pairwise(sizes))
        return float(self.stages[0].numbers.element_size() * (live + LIVE))

    def bytes_per_image(self) -> float:
        """Memory that a row or column of a tile takes: none beyond what is kept of all images."""
        return 0.0

    def tile(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Kernels [rows, cols]; of a tile on the diagonal only the upper triangle is computed."""
        same = self.symmetric and rows.start == cols.start
        n, m = rows.stop - rows.start, cols.stop - cols.start
        every = self.left.images.new_ones(n, m, dtype=torch.bool)
        i, j = torch.nonzero(every.triu() if same else every, as_tuple=True)
        sums = self._run(self.left, self.right, i + rows.start, j + cols.start)
        kernels = self.left.images.new_zeros(2, n, m)
        kernels[:, i, j] = sums.sum(-1).T
        if same:
            square = kernels[:, :, :n]
            square.copy_(square.triu() + square.triu(1).mT)
            if self.chain.equal:
                for kernel, own in zip(square, self.left.own, strict=True):
                    kernel.diagonal().copy_(own[rows])
        (nngp, ntk), layer = kernels, self.chain.readout
        return layer.w * nngp + layer.b, layer.w * ntk + layer.ws * nngp + layer.bs

    def _side(self, x: Tensor) -> _Side:
        """Images, and their variances: from all pixels of the stage before, of as many images as the budget allows."""
        single = len(self.stages) == 1
        size = len(x) if single else max(1, int(self.memory / self.bytes_per_pair()))
        parts = [part for _, part in chunks(len(x), size, lambda cut: self._own(x[cut]))]
        stages = [torch.cat([p.deviations[k] for p in parts], 1) for k in range(len(self.stages))]
        own = torch.cat([p.own[0] for p in parts]), torch.cat([p.own[1] for p in parts])
        return _Side(torch.cat([p.images for p in parts]), stages, own)

    def _own(self, x: Tensor) -> _Side:
        images = (x / x.shape[1] ** 0.5).contiguous()
        q = (x.double() ** 2).mean(1)
        t = torch.zeros_like(q)
        side = _Side(images, [], (q, t))
        each = torch.arange(len(x), device=x.device)
        sums = images
        for number, stage in enumerate(self.stages):
            s, q, t = deviations(stage.stage, q, t)
            side.deviations.append(s.to(x.dtype))
            if stage.phases:
                sums = self._stage(number, side, side, each, each, sums)
                q, t = _equal(sums, stage.windows)
        return side._replace(own=(q.mean((1, 2)).to(x.dtype), t.mean((1, 2)).to(x.dtype)))

    def _run(self, left: _Side, right: _Side, i: Tensor, j: Tensor) -> Tensor:
        """[pairs, 2, groups]: what adds up to the averages over positions."""
        sums = left.images
        for number in range(len(self.stages)):
            sums = self._stage(number, left, right, i, j, sums)
        return sums

    def _stage(self, number: int, left: _Side, right: _Side, i: Tensor, j: Tensor, pooled: Tensor) -> Tensor:
        stage = self.stages[number]
        out = left.images.new_empty(len(i), *stage.shape)
        double = out.dtype == torch.float64
        block = max(16, triton.next_power_of_2(stage.stage.size))
        with torch.cuda.device_of(out):
            run_stage[(len(i) * stage.groups,)](
                left.images, right.images, pooled, i, j,
                left.deviations[number], right.deviations[number], stage.geometry, stage.numbers, out,
                len(left.images), len(right.images), left.images.shape[1], stage.stage.size, stage.side, stage.before,
                len(stage.stage.layers), stage.stage.last, stage.stage.pool, *stage.group, stage.groups,
                POOLED=number > 0, PHASES=stage.phases, WRAPS=stage.stage.wraps, ACCURATE=double,
                BLOCK=block, num_warps=WARPS[block],
            )  # fmt: skip
        return out


def _prepared(chain: Chain, x: Tensor) -> list[_Stage]:
    found: list[_Stage] = []
    for stage in chain.stages:
        final = len(found) + 1 == len(chain.stages)
        side = stage.size if final else math.ceil(stage.size / stage.pool) * stage.pool
        group = (stage.pool, stage.pool)
        groups = (side // stage.pool) ** 2
        if final:
            group, groups = ((1, 1), 1) if chain.equal else ((1, side), side)
        numbers = [*(number for layer in stage.layers for number in layer.numbers), stage.scale]
        found.append(
            _Stage(
                stage,
                side,
                found[-1].windows if found else 0,
                not final,
                group,
                groups,
                torch.tensor(stage.geometry, dtype=torch.int32, device=x.device),
                torch.tensor(numbers, dtype=x.dtype, device=x.device),
            )
        )
    return found


def _equal(sums: Tensor, windows: int) -> tuple[Tensor, Tensor]:
    """Both kernels [n, s, s] at equal positions, in float64, from [n, 2, windows, windows, 4, s, s]."""
    phases = [sums[:, :, -(k // 2) % windows, -(k % 2) % windows, k].double() for k in range(4)]
    q, t = torch.stack(phases).sum(0).unbind(1)
    return q, t
