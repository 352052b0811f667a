"""Kernels of a chain by the compiled loops: variances of each image first, then blocks of pairs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.limits import tiles
from models.limits.chain import Chain, Stage
from models.limits.tiles import LANES
from models.limits.variances import deviations


class _Side(NamedTuple):
    images: np.ndarray
    deviations: Deviations
    own: tuple[np.ndarray, np.ndarray] | None  # kernels of each image with itself


Deviations = list[tuple[np.ndarray, np.ndarray]]
"""For each stage standard deviations and their inverses, [layers, n, size, size]."""


class Compiled:
    """One call of a chain's limit."""

    name = "compiled"

    def __init__(self, chain: Chain, x1: Tensor, x2: Tensor | None) -> None:
        self.chain, self.symmetric = chain, x2 is None
        self.threads = max(1, torch.get_num_threads())
        self.kind = np.float32 if x1.dtype == torch.float32 else np.float64
        self.numbers = [np.array([layer.numbers for layer in stage.layers], self.kind) for stage in chain.stages]
        self.geometry = [np.array(stage.geometry, np.int64) for stage in chain.stages]
        self._scratch = threading.local()  # buffers of each thread: fresh ones would fault page by page
        self.left = self._side(x1)
        self.right = self.left if x2 is None else self._side(x2)

    def bytes_per_pair(self) -> float:
        """Memory that an entry of a tile takes: both kernels, twice."""
        return 4.0 * np.dtype(self.kind).itemsize

    def bytes_per_image(self) -> float:
        """Memory that a row or column of a tile takes: images and deviations with lanes innermost."""
        numbers = self.left.images[0].size + sum(s[:, 0].size + r[:, 0].size for s, r in self.left.deviations)
        return float(numbers * self.left.images.itemsize)

    def tile(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Kernels [rows, cols]; of a tile on the diagonal only the upper triangle is computed."""
        same = self.symmetric and rows.start == cols.start
        n, m = rows.stop - rows.start, cols.stop - cols.start
        found = np.zeros((2, n, m), self.kind)
        blocks = [self._block(self.right, cols.start + j, cols.stop) for j in range(0, m, LANES)]

        def row(i: int) -> None:
            x = self._repeated(rows.start + i)
            for j in range(i // LANES * LANES if same else 0, m, LANES):
                count = min(LANES, m - j)
                found[:, i, j : j + count] = np.stack(self._outputs(x, blocks[j // LANES]))[:, :count]

        if self.threads == 1 or n == 1:
            for i in range(n):
                row(i)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(row, range(n)))
        nngp, ntk = torch.from_numpy(found)
        if same:
            for kernel, own in zip((nngp, ntk), self.left.own or (None, None), strict=True):
                square = kernel[:, :n]
                square.copy_(square.triu() + square.triu(1).T)
                if own is not None:
                    square.diagonal().copy_(torch.from_numpy(own[rows]))
        layer = self.chain.readout
        return layer.w * nngp + layer.b, layer.w * ntk + layer.ws * nngp + layer.bs

    def _side(self, x: Tensor) -> _Side:
        """Images scaled so that products are covariances, and the deviations at every layer."""
        images = (x / x.shape[1] ** 0.5).contiguous().numpy().astype(self.kind)
        variances = (x.double() ** 2).mean(1)
        if len(self.chain.stages) == 1:
            found, q, t = self._deviations(self.chain.stages[0], variances, torch.zeros_like(variances))
            return _Side(images, [found], self._means(q, t))

        def block(start: int) -> tuple[Deviations, Tensor, Tensor]:
            which = np.minimum(np.arange(start, start + LANES), len(x) - 1)
            return self._own(images[which], variances[which], min(LANES, len(x) - start))

        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(pool.map(block, range(0, len(x), LANES)))
        stages = [
            (
                np.concatenate([d[stage][0] for d, _, _ in parts], 1),
                np.concatenate([d[stage][1] for d, _, _ in parts], 1),
            )
            for stage in range(len(self.chain.stages))
        ]
        return _Side(
            images, stages, self._means(torch.cat([q for _, q, _ in parts]), torch.cat([t for *_, t in parts]))
        )

    def _means(self, q: Tensor, t: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """The kernels of each image with itself, exact, where they are averages over equal positions."""
        if not self.chain.equal:
            return None
        return q.mean((1, 2)).numpy(), t.mean((1, 2)).numpy()

    def _own(self, images: np.ndarray, q: Tensor, count: int) -> tuple[Deviations, Tensor, Tensor]:
        """Deviations of some images at all stages, from all pixels of the stage before; and the last kernels."""
        found: Deviations = []
        x = _Side(_lanes(images, 0), [], None)
        K = T = _nothing(self.kind)
        t = torch.zeros_like(q)
        for number, stage in enumerate(self.chain.stages):
            (s, r), q, t = self._deviations(stage, q, t)
            found.append((s[:, :count], r[:, :count]))
            x.deviations.append((_lanes(s, 1), _lanes(r, 1)))
            if number + 1 < len(self.chain.stages):
                K, T = self._stage(number, x, x, K, T, equal=False)
                q, t = (_equal(kernel, stage.outputs) for kernel in (K, T))
        return found, q[:count], t[:count]

    def _deviations(self, stage: Stage, q: Tensor, t: Tensor) -> tuple[tuple[np.ndarray, np.ndarray], Tensor, Tensor]:
        """Deviations at the layers of a stage with their inverses, and the kernels of images with themselves after."""
        s, q, t = deviations(stage, q, t)
        r = torch.where(s > 0, 1 / s, 0.0)
        return (s.numpy().astype(self.kind), r.numpy().astype(self.kind)), q, t

    def _block(self, side: _Side, start: int, stop: int) -> _Side:
        """LANES images from `start` on; the last before `stop` is repeated."""
        which = np.minimum(np.arange(start, start + LANES), stop - 1)
        deviations = [(_lanes(s[:, which], 1), _lanes(r[:, which], 1)) for s, r in side.deviations]
        return _Side(_lanes(side.images[which], 0), deviations, None)

    def _repeated(self, i: int) -> _Side:
        """One image of the left in all lanes."""
        images, deviations, _ = self.left
        repeated = [(np.repeat(s[:, i], LANES, -1), np.repeat(r[:, i], LANES, -1)) for s, r in deviations]
        return _Side(np.repeat(images[i], LANES, -1), repeated, None)

    def _outputs(self, x: _Side, y: _Side) -> tuple[np.ndarray, np.ndarray]:
        K = T = _nothing(self.kind)
        for number in range(len(self.chain.stages)):
            equal = self.chain.equal and number + 1 == len(self.chain.stages)
            K, T = self._stage(number, x, y, K, T, equal)
        return K.reshape(-1), T.reshape(-1)

    def _stage(
        self, number: int, x: _Side, y: _Side, K: np.ndarray, T: np.ndarray, equal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        stage = self.chain.stages[number]
        s, side = stage.outputs, stage.size + 2 * int(self.geometry[number][:, 0].max())
        K_out, T_out = (np.zeros((s, s, s, s * LANES), self.kind) for _ in range(2))
        buffers = self._scratch.__dict__.setdefault("buffers", {})
        if number not in buffers:
            buffers[number] = np.zeros((4, side, side * LANES), self.kind)
        images, second = y.images, y.deviations[number]
        if stage.wraps:
            images, second = _twice(images), (_twice(second[0]), _twice(second[1]))
        tiles.run_stage(
            x.images, images, number > 0, K, T, self.geometry[number], self.numbers[number], stage.wraps,
            *x.deviations[number], *second, stage.pool, equal, K_out, T_out, buffers[number],
        )  # fmt: skip
        scale = self.kind(stage.scale)
        return K_out * scale, T_out * scale


def _equal(kernel: np.ndarray, size: int) -> Tensor:
    """[size, size, size, size * LANES] -> [LANES, size, size] at equal positions, in float64."""
    square = kernel.reshape(size * size, size * size, LANES)
    own = square[np.arange(size * size), np.arange(size * size)]
    return torch.from_numpy(own.T.reshape(LANES, size, size).astype(np.float64))


def _nothing(kind: type) -> np.ndarray:
    return np.zeros((1, 1, 1, LANES), kind)


def _lanes(images: np.ndarray, axis: int) -> np.ndarray:
    """[..., n at `axis`, ..., size, size] -> [..., size, size * n]: lanes innermost."""
    moved = np.moveaxis(images, axis, -1)
    return np.ascontiguousarray(moved).reshape(*moved.shape[:-2], -1)


def _twice(images: np.ndarray) -> np.ndarray:
    """Columns followed by the same again, so that those beyond the edge are the first ones."""
    return np.concatenate([images, images], -1)
