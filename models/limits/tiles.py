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
STRAIGHT, BENT = range(2)  # what comes after a layer

# arccos(a) = sqrt(1 - a) P(a) on [0, 1]: Abramowitz & Stegun 4.4.46, to 2e-8; and a Chebyshev fit of P to rounding.
SHORT = (
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


LONG = _long_fit()
C0, C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17, C18, C19, C20, C21, C22 = LONG
S0, S1, S2, S3, S4, S5, S6, S7 = (np.float32(s) for s in SHORT)


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
def bend_row(k, t, s1, r1, s2, r2, n, bend, straight, at_one, at_both):  # type: ignore[no-untyped-def]
    """A piecewise linear activation on `n` covariances k and tangents t, in place.

    s, r: standard deviations of either side, and their inverses (0 for 0); bend = (right - left)^2,
    straight = right left of the slopes; at_one, at_both: see Layer.numbers.
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
        slope = share + straight
        flat = at_both if r1[i] == zero and r2[i] == zero else at_one
        t[i] = (flat if r1[i] == zero or r2[i] == zero else slope) * t[i]


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy")
def sum_rows(K, hK, base, size, before, wraps, rows_in, cols_in, rows, cols):  # type: ignore[no-untyped-def]
    """Sums over `size` pixels of each row of a tile, to hK, which gets the rows that are padded above and below.

    K: [side, side * LANES], the tile from pixel (base, base) on.
    """
    zero = K.dtype.type(0)
    start, edge = (base - before) * LANES, base * LANES
    end, n = edge + cols_in * LANES, cols * LANES
    behind = (size - 1 - before + cols - cols_in) * LANES
    for r in range(rows_in):
        full, out = K[base + r], hK[before + r]
        for i in range(before * LANES):
            full[start + i] = full[end - before * LANES + i] if wraps else zero
        for i in range(behind):
            full[end + i] = full[edge + i] if wraps else zero
        line = full[start:]
        for i in range(n):
            out[i] = line[i]
        for o in range(1, size):
            shifted = line[o * LANES :]
            for i in range(n):
                out[i] += shifted[i]
    for r in range(before):
        for i in range(n):
            hK[r, i] = hK[rows_in + r, i] if wraps else zero
    for r in range(size - 1 - before + rows - rows_in):
        for i in range(n):
            hK[before + rows_in + r, i] = hK[before + r, i] if wraps else zero


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy")
def run_layer(K, T, hK, hT, base, g, wraps, rows_in, cols_in, rows, cols, v, s1, r1, s2, r2, top, left, dr, dc):  # type: ignore[no-untyped-def] # fmt: skip
    """One layer on a tile in place: sums over windows, affine, activation.

    g, v: the layer's geometry and numbers; s1 ... r2: [S, S * LANES] of either image, the second's columns twice if
    the window `wraps` around the image.
    """
    n, edge = cols * LANES, base * LANES
    size, before, kind = g[0], g[1], g[4]
    w, b, ws, bs = v[0], v[1], v[2], v[3]
    if size > 1:
        sum_rows(K, hK, base, size, before, wraps, rows_in, cols_in, rows, cols)
        sum_rows(T, hT, base, size, before, wraps, rows_in, cols_in, rows, cols)
    for r in range(rows):
        k, t = K[r + base, edge:], T[r + base, edge:]
        if size > 1:
            for i in range(n):
                k[i] = hK[r, i]
                t[i] = hT[r, i]
            for o in range(1, size):
                line_k, line_t = hK[r + o], hT[r + o]
                for i in range(n):
                    k[i] += line_k[i]
                    t[i] += line_t[i]
        for i in range(n):
            t[i] = w * t[i] + ws * k[i] + bs
            k[i] = w * k[i] + b
        if kind == BENT:
            x, y = left * LANES, (left + dc) * LANES
            p, q = top + r, top + r + dr
            if q >= len(s2):
                q -= len(s2)
            bend_row(k, t, s1[p, x:], r1[p, x:], s2[q, y:], r2[q, y:], n, v[4], v[5], v[6], v[7])


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, nogil=True, error_model="numpy")
def run_stage(x, y, pooled, K_in, T_in, geometry, numbers, wraps, s1, r1, s2, r2, pool, equal, K_out, T_out, scratch):  # type: ignore[no-untyped-def] # fmt: skip
    """All displacements of LANES pairs of images through the layers of a stage, and their sums over pooling windows.

    x, y: images [channels, S, S * LANES] scaled so that products are covariances, read if not `pooled`; else K_in,
    T_in [S, S, S, S * LANES]. geometry: [layers, 5] (window, pixels before, sides before and after, activation);
    numbers: [layers, 8] (w, b, ws, bs, and four of the activation). s1 ... r2: [layers, S, S * LANES]. Where windows go
    around the image (`wraps`) displacements do too, q = p + d mod S, and y, s2 and r2 hold their columns twice.
    `equal`: only displacement 0. K_out, T_out: [s, s, s, s * LANES] for windows of `pool` pixels, to add to. scratch:
    [4, side, side * LANES].
    """
    layers = numbers.shape[0]
    S, last = geometry[0, 2], geometry[layers - 1, 3]
    channels = x.shape[0]
    base = 0
    for layer in range(layers):
        base = max(base, geometry[layer, 1])
    edge = base * LANES
    zero = K_out.dtype.type(0)
    K, T, hK, hT = scratch[0], scratch[1], scratch[2], scratch[3]
    most = 0 if equal else last - 1
    least = 0 if wraps else -most
    total_k = np.zeros(LANES, np.float64)
    total_t = np.zeros(LANES, np.float64)
    whole = pool >= last
    for dr in range(least, most + 1):
        top, short_r = max(0, -dr), 0 if wraps else abs(dr)
        for dc in range(least, most + 1):
            left, short_c = max(0, -dc), 0 if wraps else abs(dc)
            cols = S - short_c
            for r in range(S - short_r):
                k, t = K[r + base, edge:], T[r + base, edge:]
                q_row = top + r + dr
                if q_row >= S:
                    q_row -= S
                if pooled:
                    for c in range(cols):
                        q_col = left + c + dc
                        if q_col >= S:
                            q_col -= S
                        source_k = K_in[top + r, left + c, q_row, q_col * LANES :]
                        source_t = T_in[top + r, left + c, q_row, q_col * LANES :]
                        for i in range(LANES):
                            k[c * LANES + i] = source_k[i]
                            t[c * LANES + i] = source_t[i]
                else:
                    n = cols * LANES
                    for i in range(n):
                        k[i] = zero
                        t[i] = zero
                    for channel in range(channels):
                        a, b = x[channel, top + r, left * LANES :], y[channel, q_row, (left + dc) * LANES :]
                        for i in range(n):
                            k[i] += a[i] * b[i]
            for layer in range(layers):
                g = geometry[layer]
                run_layer(K, T, hK, hT, base, g, wraps, g[2] - short_r, g[2] - short_c, g[3] - short_r, g[3] - short_c,
                          numbers[layer], s1[layer], r1[layer], s2[layer], r2[layer], top, left, dr, dc)  # fmt: skip
            for r in range(last - short_r):
                k, t = K[r + base, edge:], T[r + base, edge:]
                if whole:
                    # Sums of many in float64; of a row in the kernels' own type.
                    for lane in range(LANES):
                        hK[0, lane] = zero
                        hT[0, lane] = zero
                    line_k, line_t = hK[0], hT[0]
                    for c in range(last - short_c):
                        for i in range(LANES):
                            line_k[i] += k[c * LANES + i]
                            line_t[i] += t[c * LANES + i]
                    for i in range(LANES):
                        total_k[i] += line_k[i]
                        total_t[i] += line_t[i]
                else:
                    q_row = top + r + dr
                    if q_row >= last:
                        q_row -= last
                    P, Q = (top + r) // pool, q_row // pool
                    for c in range(last - short_c):
                        q_col = left + c + dc
                        if q_col >= last:
                            q_col -= last
                        target = (q_col // pool) * LANES
                        out_k = K_out[P, (left + c) // pool, Q, target:]
                        out_t = T_out[P, (left + c) // pool, Q, target:]
                        for i in range(LANES):
                            out_k[i] += k[c * LANES + i]
                            out_t[i] += t[c * LANES + i]
    if whole:
        for i in range(LANES):
            K_out[0, 0, 0, i] += total_k[i]
            T_out[0, 0, 0, i] += total_t[i]
