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


class _Side(NamedTuple):
    images: np.ndarray
    deviations: Deviations
    own: tuple[np.ndarray, np.ndarray] | None  # kernels of each image with itself


Deviations = list[tuple[np.ndarray, np.ndarray]]
"""For each stage standard deviations and their inverses, [layers, n, size, size]."""


class Compiled:
    """One call of a chain's limit."""

    def __init__(self, chain: Chain, x1: Tensor, x2: Tensor | None) -> None:
        self.chain, self.symmetric = chain, x2 is None
        self.threads = max(1, torch.get_num_threads())
        self.kind = np.float32 if x1.dtype == torch.float32 else np.float64
        self.numbers = [np.array([layer.numbers for layer in stage.layers], self.kind) for stage in chain.stages]
        self.halves = [np.array([layer.half for layer in stage.layers], np.int64) for stage in chain.stages]
        self._scratch = threading.local()  # buffers of each thread: fresh ones would fault page by page
        self.left = self._side(x1)
        self.right = self.left if x2 is None else self._side(x2)

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
        q = (x.double() ** 2).mean(1).numpy()
        if len(self.chain.stages) == 1:
            deviations, own = _deviations(self.chain.stages[0], q, np.zeros_like(q), self.kind)
            return _Side(images, [deviations], self._means(*own))
        parts: list[tuple[Deviations, np.ndarray]] = []

        def block(start: int) -> tuple[Deviations, np.ndarray]:
            which = np.minimum(np.arange(start, start + LANES), len(x) - 1)
            return self._own(images, which, q[which], min(LANES, len(x) - start))

        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(pool.map(block, range(0, len(x), LANES)))
        stages = [
            (np.concatenate([d[stage][0] for d, _ in parts], 1), np.concatenate([d[stage][1] for d, _ in parts], 1))
            for stage in range(len(self.chain.stages))
        ]
        q, t = np.concatenate([o for _, o in parts], 1)
        return _Side(images, stages, self._means(q, t))

    def _means(self, q: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The kernels of each image with itself, exact, where they are averages over equal positions."""
        if not self.chain.equal:
            return None
        return q.mean((1, 2)), t.mean((1, 2))

    def _own(self, images: np.ndarray, which: np.ndarray, q: np.ndarray, count: int) -> tuple[Deviations, np.ndarray]:
        """Deviations of some images at all stages, from all pixels of the stage before; and the last kernels."""
        found: Deviations = []
        x = _lanes(images[which], 0)
        K = T = _nothing(self.kind)
        t = np.zeros_like(q)
        for number, stage in enumerate(self.chain.stages):
            deviations, own = _deviations(stage, q, t, self.kind)
            found.append((deviations[0][:, :count], deviations[1][:, :count]))
            if number + 1 == len(self.chain.stages):
                break
            packed = _lanes(deviations[0], 1), _lanes(deviations[1], 1)
            K, T = self._stage(number, x, x, K, T, packed, packed, equal=False)
            q, t = (_equal(kernel, stage.outputs) for kernel in (K, T))
        return found, np.stack(own)[:, :count]

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
            K, T = self._stage(number, x.images, y.images, K, T, x.deviations[number], y.deviations[number], equal)
        return K.reshape(-1), T.reshape(-1)

    def _stage(
        self,
        number: int,
        x: np.ndarray,
        y: np.ndarray,
        K: np.ndarray,
        T: np.ndarray,
        first: tuple[np.ndarray, np.ndarray],
        second: tuple[np.ndarray, np.ndarray],
        equal: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        stage = self.chain.stages[number]
        s, side = stage.outputs, stage.size + 2 * int(self.halves[number].max())
        K_out, T_out = (np.zeros((s, s, s, s * LANES), self.kind) for _ in range(2))
        buffers = self._scratch.__dict__.setdefault("buffers", {})
        if number not in buffers:
            buffers[number] = np.zeros((4, side, side * LANES), self.kind)
        tiles.run_stage(
            x, y, number > 0, K, T, self.numbers[number], self.halves[number], *first, *second, stage.pool, equal,
            K_out, T_out, buffers[number],
        )  # fmt: skip
        scale = self.kind(stage.scale)
        return K_out * scale, T_out * scale


def _deviations(
    stage: Stage, q: np.ndarray, t: np.ndarray, kind: type
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Standard deviations before each activation of a stage, and their inverses, [layers, n, size, size].

    And the variances and NTKs after it, at equal positions of an image with itself, where the angle is 0.
    """
    s, r = [], []
    for layer in stage.layers:
        box_q = _box(q, layer.half)
        t = layer.w * _box(t, layer.half) + layer.ws * box_q + layer.bs
        q = layer.w * box_q + layer.b
        root = np.sqrt(np.maximum(q, 0))
        s.append(root)
        r.append(np.where(root > 0, 1 / np.where(root > 0, root, 1), 0))
        if layer.bent:
            half = (layer.right**2 + layer.left**2) / 2
            q, t = half * q, half * t
    return (np.stack(s).astype(kind), np.stack(r).astype(kind)), (q, t)


def _equal(kernel: np.ndarray, size: int) -> np.ndarray:
    """[size, size, size, size * LANES] -> [LANES, size, size] at equal positions, in float64."""
    square = kernel.reshape(size * size, size * size, LANES)
    own = square[np.arange(size * size), np.arange(size * size)]
    return own.T.reshape(LANES, size, size).astype(np.float64)


def _nothing(kind: type) -> np.ndarray:
    return np.zeros((1, 1, 1, LANES), kind)


def _lanes(images: np.ndarray, axis: int) -> np.ndarray:
    """[..., n at `axis`, ..., size, size] -> [..., size, size * n]: lanes innermost."""
    moved = np.moveaxis(images, axis, -1)
    return np.ascontiguousarray(moved).reshape(*moved.shape[:-2], -1)


def _box(q: np.ndarray, half: int) -> np.ndarray:
    """Sums over windows of 2 half + 1 pixels a side, with zeros outside."""
    for axis in (-1, -2):
        width = [(0, 0)] * q.ndim
        width[axis] = (half, half)
        padded = np.pad(q, width)
        size = q.shape[axis]
        q = np.sum([np.take(padded, range(o, o + size), axis) for o in range(2 * half + 1)], 0)
    return q
