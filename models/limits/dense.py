"""Kernels of a dense chain by a compiled loop: each tile of the input's Gram matrix goes through all layers at once."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor

from models.limits.chain import BENT, STRAIGHT, Layer, slopes
from models.limits.structural import affine
from models.limits.tiles import arccos_over_root
from models.limits.trace import Program


def find_dense(program: Program) -> list[Layer] | None:
    """The layers of a program of linear layers and activations that bend at 0 only; None for any other."""
    layers: list[Layer] = []
    steps = program.steps
    for before, step in pairwise(steps):
        if step.args != (before,):
            return None
        if step.role == "layer" and step.module is not None:
            try:
                found = affine(step.module)
            except TypeError:
                return None
            if found.windows:
                return None
            layers.append(Layer(found.w_variance, found.b_variance, found.w_slope, found.b_slope))
        elif step.role == "activation" and step.function is not None and layers and layers[-1].kind == STRAIGHT:
            both = slopes(step.function)
            if both is None:
                return None
            layers[-1] = replace(layers[-1], kind=BENT, right=both[0], left=both[1])
        else:
            return None
    return layers or None


class CompiledDense:
    """One call of a dense chain's limit."""

    name = "compiled"

    def __init__(self, layers: list[Layer], x1: Tensor, x2: Tensor | None) -> None:
        self.symmetric = x2 is None
        self.kind = np.float32 if x1.dtype == torch.float32 else np.float64
        self.layers = layers
        self.numbers = np.array([layer.numbers for layer in layers], self.kind)
        self.bent = np.array([layer.kind == BENT for layer in layers])
        self.left = x1 / math.sqrt(x1.shape[1])
        self.right = self.left if x2 is None else x2 / math.sqrt(x1.shape[1])
        self.first = self._deviations(x1)
        self.second = self.first if x2 is None else self._deviations(x2)

    def bytes_per_pair(self) -> float:
        """Memory that an entry of a tile takes: both kernels, twice."""
        return 4.0 * self.left.element_size()

    def bytes_per_image(self) -> float:
        """Memory that a row or column of a tile takes: its features."""
        return float(self.left[0].nbytes)

    def tile(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Kernels [rows, cols]; exact on the diagonal of a symmetric tile."""
        nngp = self.left[rows] @ self.right[cols].T
        ntk = torch.empty_like(nngp)
        # Of a known stride, which vector instructions need.
        s, r = (np.ascontiguousarray(part[:, rows]) for part in self.first[:2])
        t, u = (np.ascontiguousarray(part[:, cols]) for part in self.second[:2])
        run_dense(nngp.numpy(), ntk.numpy(), self.numbers, self.bent, s, r, t, u)
        if self.symmetric and rows.start == cols.start:
            for kernel, own in zip((nngp, ntk), self.first[2:], strict=True):
                kernel[:, : len(kernel)].diagonal().copy_(torch.from_numpy(own[rows]))
        return nngp, ntk

    def _deviations(self, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Standard deviations before each activation and their inverses [layers, n]; kernels with themselves [n]."""
        q = (x.double() ** 2).mean(1).numpy()
        t = np.zeros_like(q)
        s, r = [], []
        for layer in self.layers:
            t = layer.w * t + layer.ws * q + layer.bs
            q = layer.w * q + layer.b
            root = np.sqrt(q)
            s.append(root)
            r.append(np.where(root > 0, 1 / np.where(root > 0, root, 1), 0))
            if layer.kind == BENT:
                half = (layer.right**2 + layer.left**2) / 2
                q, t = half * q, np.where(root > 0, half, layer.left**2) * t
        return np.stack(s).astype(self.kind), np.stack(r).astype(self.kind), q.astype(self.kind), t.astype(self.kind)


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy")
def run_dense(K, T, numbers, bent, s1, r1, s2, r2):  # type: ignore[no-untyped-def]
    """All layers on a tile in place. K: the input's Gram, [rows, cols]; s, r [layers, rows] and [layers, cols]."""
    zero, one = K.dtype.type(0), K.dtype.type(1)
    certain = K.dtype.type(1 - 8 * np.finfo(K.dtype).eps)
    pi, turn = K.dtype.type(math.pi), K.dtype.type(1 / (2 * math.pi))
    rows, cols = K.shape
    for row in range(rows):
        k, t = K[row], T[row]
        for i in range(cols):
            t[i] = zero
        for layer in range(len(numbers)):
            w, b, ws, bs = numbers[layer, 0], numbers[layer, 1], numbers[layer, 2], numbers[layer, 3]
            bend, straight, at_one, at_both = numbers[layer, 4], numbers[layer, 5], numbers[layer, 6], numbers[layer, 7]
            for i in range(cols):
                t[i] = w * t[i] + ws * k[i] + bs
                k[i] = w * k[i] + b
            if not bent[layer]:
                continue
            sx, rx, sy, ry = s1[layer, row], r1[layer, row], s2[layer], r2[layer]
            for i in range(cols):
                z = k[i]
                c = z * (rx * ry[i])
                a = abs(c)
                a = one if a > certain else a
                root = math.sqrt(one - a)
                arc = root * arccos_over_root(a)
                rest = arc if c < zero else pi - arc
                sine = root * math.sqrt(one + a)
                share = bend * rest * turn
                k[i] = bend * turn * (sx * sy[i]) * sine + (share + straight) * z
                flat = at_both if rx == zero and ry[i] == zero else at_one
                t[i] = (flat if rx == zero or ry[i] == zero else share + straight) * t[i]
