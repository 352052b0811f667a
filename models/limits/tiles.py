"""Compiled loops over displacement tiles: the covariances of pairs of images, layer by layer, inside the cache.

For a fixed displacement d = q - p a convolution of K[p, q] is a box filter on an image of (S - |d_r|)(S - |d_c|)
pixels, and an activation is point-wise: displacements meet only at pooling. Each displacement runs through all
layers of a stage. The innermost axis holds LANES pairs of images, which the compiler turns into vector instructions;
every inner loop runs over a whole row of pixels and lanes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

LANES = 16

# arccos(a) = sqrt(1 - a) P(a) on [0, 1]: Abramowitz & Stegun 4.4.46, to 2e-8; and a Chebyshev fit of P to rounding.
_SHORT = (
    *(1.5707963050, -0.2145988016, 0.0889789874, -0.0501743046),
    *(0.0308918810, -0.0170881256, 0.0066700901, -0.0012624911),
)


def _long_fit() -> tuple[float, ...]:
    def smooth(a: np.ndarray) -> np.ndarray:
        # arccos(a) / sqrt(1 - a), from the half angle where that cancels.
        half = np.sqrt((1 - a) / 2)
        return np.where(half > 0, 2 * np.arcsin(half) / np.where(half > 0, np.sqrt(1 - a), 1), math.sqrt(2))

    fit = np.polynomial.chebyshev.Chebyshev.interpolate(smooth, 22, domain=[0, 1])
    return tuple(fit.coef)


_LONG = _long_fit()
C0, C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17, C18, C19, C20, C21, C22 = _LONG
S0, S1, S2, S3, S4, S5, S6, S7 = (np.float32(s) for s in _SHORT)


def arccos_over_root(a):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """arccos(a) / sqrt(1 - a) for a in [0, 1]."""


@overload(arccos_over_root, inline="always")
def _arccos_over_root(a):  # type: ignore[no-untyped-def]
    if a == types.float32:

        def short(a):  # type: ignore[no-untyped-def]
            return S0 + a * (S1 + a * (S2 + a * (S3 + a * (S4 + a * (S5 + a * (S6 + a * S7))))))

        return short

    def long(a):  # type: ignore[no-untyped-def]
        # Clenshaw's recurrence, which keeps the digits that powers of a would lose.
        y = 4 * a - 2
        b1 = C22
        b2 = y * b1 + C21
        b1 = y * b2 - b1 + C20
        b2 = y * b1 - b2 + C19
        b1 = y * b2 - b1 + C18
        b2 = y * b1 - b2 + C17
        b1 = y * b2 - b1 + C16
        b2 = y * b1 - b2 + C15
        b1 = y * b2 - b1 + C14
        b2 = y * b1 - b2 + C13
        b1 = y * b2 - b1 + C12
        b2 = y * b1 - b2 + C11
        b1 = y * b2 - b1 + C10
        b2 = y * b1 - b2 + C9
        b1 = y * b2 - b1 + C8
        b2 = y * b1 - b2 + C7
        b1 = y * b2 - b1 + C6
        b2 = y * b1 - b2 + C5
        b1 = y * b2 - b1 + C4
        b2 = y * b1 - b2 + C3
        b1 = y * b2 - b1 + C2
        b2 = y * b1 - b2 + C1
        return 0.5 * y * b2 - b1 + C0

    return long


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy", inline="always")
def bend_row(k, t, s1, r1, s2, r2, n, bend, straight):  # type: ignore[no-untyped-def]
    """A piecewise linear activation on `n` covariances k and tangents t, in place.

    s, r: standard deviations of either side, and their inverses (0 for 0); bend = (right - left)^2,
    straight = right left of the slopes.
    """
    zero, one = k.dtype.type(0), k.dtype.type(1)
    # Beyond this a correlation is 1 but for rounding: its root would show in the angle.
    certain = k.dtype.type(1 - 8 * np.finfo(k.dtype).eps)
    pi, turn = k.dtype.type(math.pi), k.dtype.type(1 / (2 * math.pi))
    for i in range(n):
        z = k[i]
        c = z * (r1[i] * r2[i])
        a = abs(c)
        a = one if a > certain else a
        root = math.sqrt(one - a)
        arc = root * arccos_over_root(a)
        rest = arc if c < zero else pi - arc  # pi - theta
        sine = root * math.sqrt(one + a)
        share = bend * rest * turn
        k[i] = bend * turn * (s1[i] * s2[i]) * sine + (share + straight) * z
        t[i] = (share + straight) * t[i]


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy")
def run_layer(K, T, hK, hT, rows, cols, half, w, b, ws, bs, bent, bend, straight, s1, r1, s2, r2, top, left, dr, dc):  # type: ignore[no-untyped-def] # fmt: skip
    """One layer on a tile in place: box filter, affine, activation; the tile lies in zero borders of `half` pixels.

    K, T, hK, hT: [side, side * LANES]; s1 ... r2: [S, S * LANES] of either image.
    """
    n = cols * LANES
    zero = K.dtype.type(0)
    edge = half * LANES
    if half > 0:
        for r in range(rows):
            line_k, line_t, out_k, out_t = K[r + half], T[r + half], hK[r + half], hT[r + half]
            for i in range(n):
                out_k[i] = line_k[i]
                out_t[i] = line_t[i]
            for o in range(1, 2 * half + 1):
                shifted_k, shifted_t = line_k[o * LANES :], line_t[o * LANES :]
                for i in range(n):
                    out_k[i] += shifted_k[i]
                    out_t[i] += shifted_t[i]
        for r in range(half):
            for i in range(n):
                hK[r, i] = zero
                hT[r, i] = zero
                hK[rows + half + r, i] = zero
                hT[rows + half + r, i] = zero
    for r in range(rows):
        k, t = K[r + half, edge:], T[r + half, edge:]
        if half > 0:
            for i in range(n):
                k[i] = hK[r, i]
                t[i] = hT[r, i]
            for o in range(1, 2 * half + 1):
                line_k, line_t = hK[r + o], hT[r + o]
                for i in range(n):
                    k[i] += line_k[i]
                    t[i] += line_t[i]
        for i in range(n):
            t[i] = w * t[i] + ws * k[i] + bs
            k[i] = w * k[i] + b
        if bent:
            x, y = left * LANES, (left + dc) * LANES
            p, q = top + r, top + r + dr
            bend_row(k, t, s1[p, x:], r1[p, x:], s2[q, y:], r2[q, y:], n, bend, straight)


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy")
def run_stage(x, y, pooled, K_in, T_in, numbers, halves, s1, r1, s2, r2, pool, equal, K_out, T_out, scratch):  # type: ignore[no-untyped-def] # fmt: skip
    """All displacements of LANES pairs of images through the layers of a stage, and their sums over pooling windows.

    x, y: images [channels, S, S * LANES] scaled so that products are covariances, read if not `pooled`; else K_in,
    T_in [S, S, S, S * LANES]. numbers: [layers, 7] (w, b, ws, bs, bent, bend, straight). s1 ... r2: [layers, S,
    S * LANES]. `equal`: only displacement 0. K_out, T_out: [s, s, s, s * LANES] for windows of `pool` pixels, to add
    to. scratch: [4, side, side * LANES].
    """
    S = s1.shape[1] if not pooled else K_in.shape[0]
    channels = x.shape[0]
    layers = numbers.shape[0]
    largest = 0
    for layer in range(layers):
        largest = max(largest, halves[layer])
    zero = K_out.dtype.type(0)
    K, T, hK, hT = scratch[0], scratch[1], scratch[2], scratch[3]
    last = 0 if equal else S - 1
    total_k = np.zeros(LANES, np.float64)
    total_t = np.zeros(LANES, np.float64)
    whole = pool >= S
    for dr in range(-last, last + 1):
        top, rows = max(0, -dr), S - abs(dr)
        for dc in range(-last, last + 1):
            left, cols = max(0, -dc), S - abs(dc)
            n = cols * LANES
            for layer in range(layers):
                half = halves[layer]
                if layer == 0:
                    for r in range(rows):
                        k, t = K[r + half, half * LANES :], T[r + half, half * LANES :]
                        p, q = left * LANES, (left + dc) * LANES
                        if pooled:
                            for c in range(cols):
                                source_k = K_in[top + r, left + c, top + r + dr, (left + c + dc) * LANES :]
                                source_t = T_in[top + r, left + c, top + r + dr, (left + c + dc) * LANES :]
                                for i in range(LANES):
                                    k[c * LANES + i] = source_k[i]
                                    t[c * LANES + i] = source_t[i]
                        else:
                            for i in range(n):
                                k[i] = zero
                                t[i] = zero
                            for channel in range(channels):
                                a, b = x[channel, top + r, p:], y[channel, top + r + dr, q:]
                                for i in range(n):
                                    k[i] += a[i] * b[i]
                elif half != halves[layer - 1]:
                    before = halves[layer - 1]
                    step = 1 if half < before else -1
                    for j in range(rows):
                        r = j if step > 0 else rows - 1 - j
                        for i0 in range(n):
                            i = i0 if step > 0 else n - 1 - i0
                            K[r + half, half * LANES + i] = K[r + before, before * LANES + i]
                            T[r + half, half * LANES + i] = T[r + before, before * LANES + i]
                edge = half * LANES
                for r in range(rows):  # borders left by other layers and tiles
                    for i in range(edge):
                        K[r + half, i] = zero
                        T[r + half, i] = zero
                        K[r + half, edge + n + i] = zero
                        T[r + half, edge + n + i] = zero
                v = numbers[layer]
                run_layer(K, T, hK, hT, rows, cols, half, v[0], v[1], v[2], v[3], v[4] > zero, v[5], v[6],
                          s1[layer], r1[layer], s2[layer], r2[layer], top, left, dr, dc)  # fmt: skip
            half = halves[layers - 1]
            for r in range(rows):
                k, t = K[r + half, half * LANES :], T[r + half, half * LANES :]
                if whole:
                    # Sums of many in float64; of a row in the kernels' own type.
                    for lane in range(LANES):
                        hK[0, lane] = zero
                        hT[0, lane] = zero
                    line_k, line_t = hK[0], hT[0]
                    for c in range(cols):
                        for i in range(LANES):
                            line_k[i] += k[c * LANES + i]
                            line_t[i] += t[c * LANES + i]
                    for i in range(LANES):
                        total_k[i] += line_k[i]
                        total_t[i] += line_t[i]
                else:
                    P, Q = (top + r) // pool, (top + r + dr) // pool
                    for c in range(cols):
                        target = ((left + c + dc) // pool) * LANES
                        out_k = K_out[P, (left + c) // pool, Q, target:]
                        out_t = T_out[P, (left + c) // pool, Q, target:]
                        for i in range(LANES):
                            out_k[i] += k[c * LANES + i]
                            out_t[i] += t[c * LANES + i]
    if whole:
        for i in range(LANES):
            K_out[0, 0, 0, i] += total_k[i]
            T_out[0, 0, 0, i] += total_t[i]
