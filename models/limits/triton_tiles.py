"""Triton kernels: the covariances of pairs of images through the layers of a stage, one displacement at a time.

For a displacement d on a torus, q = p + d mod side, the covariances K[p, q] are a dense tile over p. A convolution sums
along the joint diagonal of p and q, so it is A K C' with banded matrices of 0 and 1, one an axis, made from indices:
their bands end where p or q leaves the image, or go around with circular padding. Two matrix products a layer and
kernel, and the tile stays in registers through the whole stage. Pooling sums over windows of p and of q: displacements
that differ within a window meet, in one of two neighbouring displacements of windows an axis. So a program takes the
displacements of one window, and writes the four phases of its sums as the quarters of one tile.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from models.limits.tiles import BENT, LONG, SHORT

_SHORT = tl.constexpr(SHORT)
_LONG = tl.constexpr(LONG)
_CERTAIN = tl.constexpr(1 - 8 * float(np.finfo(np.float32).eps))
_CERTAIN_LONG = tl.constexpr(1 - 8 * float(np.finfo(np.float64).eps))
_PI = tl.constexpr(float(np.pi))
_TURN = tl.constexpr(float(0.5 / np.pi))
_BENT = tl.constexpr(BENT)
_FAR = tl.constexpr(1 << 16)  # beyond any position


@triton.jit
def _arccos_over_root(a, ACCURATE: tl.constexpr):
    """arccos(a) / sqrt(1 - a) for a in [0, 1]."""
    if ACCURATE:  # Clenshaw's recurrence
        y = 4 * a - 2
        b1 = tl.zeros_like(a)
        b2 = tl.zeros_like(a)
        for i in tl.static_range(22):
            b1, b2 = y * b1 - b2 + _LONG[22 - i], b1
        value = 0.5 * y * b1 - b2 + _LONG[0]
    else:
        value = tl.full(a.shape, _SHORT[7], a.dtype)
        for i in tl.static_range(7):
            value = value * a + _SHORT[6 - i]
    return value


@triton.jit
def _bend(k, t, s1, s2, bend, straight, at_one, at_both, ACCURATE: tl.constexpr):
    """A piecewise linear activation: bend, straight, at_one and at_both as in Layer.numbers."""
    scale = s1 * s2
    c = k / tl.where(scale > 0, scale, 1.0)
    a = tl.abs(c)
    certain: tl.constexpr = _CERTAIN_LONG if ACCURATE else _CERTAIN
    a = tl.where(a > certain, 1.0, a)  # beyond this a correlation is 1 but for rounding
    root = tl.sqrt(1 - a)
    arc = root * _arccos_over_root(a, ACCURATE)
    rest = tl.where(c < 0, arc, _PI - arc)
    slope = bend * _TURN * rest + straight
    flat = tl.where((s1 == 0) & (s2 == 0), at_both, at_one)
    gain = tl.where((s1 == 0) | (s2 == 0), flat, slope)
    return bend * _TURN * scale * root * tl.sqrt(1 + a) + slope * k, gain * t


@triton.jit
def _code(p, d, side, size, WRAPS: tl.constexpr):
    """Numbers of positions p, so that two differ by as much as p and q = p + d mod side alike; far off the image."""
    q = p + d
    around = q >= side
    valid = (p < size) & (tl.where(around, q - side, q) < size)
    if WRAPS:
        around = around & (p < 0)
    return tl.where(valid, tl.where(around, p + _FAR, p), -_FAR)


@triton.jit
def _band(out, inside, span, before, side, WRAPS: tl.constexpr):
    """1 where the output of a number sums over the input of another: in a window that goes around if WRAPS."""
    offset = inside - out + before
    if WRAPS:
        offset = tl.where(offset < 0, offset + side, offset)
        offset = tl.where((offset >= side) & (offset < 2 * side), offset - side, offset)
    return (offset >= 0) & (offset < span) & (inside >= 0) & (out >= 0)


@triton.jit
def _rounded(k):
    """To the 11 bits that tensor cores take of a float32."""
    bits = k.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _times(k, band, ACCURATE: tl.constexpr):
    """k times a matrix of 0 and 1, to rounding: in float32 as two parts of 11 bits and a sign each."""
    ones = band.to(k.dtype)
    if ACCURATE:
        product = tl.dot(k, ones, input_precision="ieee")
    else:
        high = _rounded(k)
        product = tl.dot(high, ones, input_precision="tf32")
        product = tl.dot(_rounded(k - high), ones, product, input_precision="tf32")
    return product


@triton.jit
def _both(k, rows, cols, ACCURATE: tl.constexpr):
    """rows' k cols: both products have the tile on the left, where it takes half the registers."""
    return tl.trans(_times(tl.trans(_times(k, cols, ACCURATE)), rows, ACCURATE))


@triton.jit
def _product(x, y, one, two, p, q, size, channels, mask, BLOCK: tl.constexpr):
    """Covariances of pixels: sums over channels."""
    k = tl.zeros([BLOCK, BLOCK], x.dtype.element_ty)
    for channel in range(channels):
        a = tl.load(x + (one * channels + channel) * size * size + p, mask, 0.0)
        b = tl.load(y + (two * channels + channel) * size * size + q, mask, 0.0)
        k += a * b
    return k


@triton.jit
def _gathered(source, p, row, col, windows, size, mask, BLOCK: tl.constexpr):
    """Covariances of pooled pixels p, q = p + (row, col): the sums of the four phases of the stage before."""
    k = tl.zeros([BLOCK, BLOCK], source.dtype.element_ty)
    for phase in tl.static_range(4):
        e_row, e_col = row - phase // 2, col - phase % 2
        e_row = tl.where(e_row < 0, e_row + windows, e_row)
        e_col = tl.where(e_col < 0, e_col + windows, e_col)
        place = (e_row * windows)[:, None] + e_col[None, :]
        place = (place * 4 + phase) * size * size + p[:, None] * size + p[None, :]
        k += tl.load(source + place, mask, 0.0)
    return k


@triton.jit
def _other(p, d, side):
    """The position q at displacement d of p < side."""
    q = p + d
    return tl.where(q >= side, q - side, q)


@triton.jit
def run_stage(
    x, y, pooled, first, second, s1, s2, geometry, numbers, out,
    n1, n2, channels, size, side, windows, layers, last, pool, rows, cols, groups,
    POOLED: tl.constexpr, PHASES: tl.constexpr, WRAPS: tl.constexpr, ACCURATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pair of images and one group of rows x cols displacements on the torus of `side`.

    x, y: images [n, channels, size, size] scaled so that products are covariances, or, if POOLED, the sums [pairs, 2,
    windows, windows, 4, size, size] of the stage before in `pooled`. first, second: numbers of the images of each pair.
    s1, s2: deviations [layers, n, size, size]. geometry [layers, 5] and numbers [layers, 8] as in tiles.py, then the
    scale of sums. out: PHASES: [pairs, 2, side / pool, side / pool, 4, last / pool, last / pool]; else sums over all p
    of a group, [pairs, 2, groups]. WRAPS: windows go around the image; ACCURATE: float64.
    """
    pair = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    across = side // cols
    top, left = group // across, group % across
    one, two = tl.load(first + pair), tl.load(second + pair)
    i = tl.arange(0, BLOCK)
    kind = s1.dtype.element_ty
    total_k = tl.zeros([BLOCK, BLOCK], kind)
    total_t = tl.zeros([BLOCK, BLOCK], kind)
    half: tl.constexpr = BLOCK // 2
    quarter, window = i // half, i % half  # of the output's tile
    for f_row in range(rows):
        d_row = top * rows + f_row
        q_row = _other(i, d_row, side)
        for f_col in range(cols):
            d_col = left * cols + f_col
            q_col = _other(i, d_col, side)
            inside = ((i < size) & (q_row < size))[:, None] & ((i < size) & (q_col < size))[None, :]
            p, q = i[:, None] * size + i[None, :], q_row[:, None] * size + q_col[None, :]
            if POOLED:
                length = windows * windows * 4 * size * size
                source = pooled + pair * 2 * length
                k = _gathered(source, i, q_row - i, q_col - i, windows, size, inside, BLOCK)
                t = _gathered(source + length, i, q_row - i, q_col - i, windows, size, inside, BLOCK)
            else:
                k = _product(x, y, one, two, p, q, size, channels, inside, BLOCK)
                t = tl.zeros([BLOCK, BLOCK], kind)
            layer = 0
            while layer < layers:  # a `for` would carry the tile in the layouts of all products, and bend each
                ints, floats = geometry + layer * 5, numbers + layer * 8
                span = tl.load(ints)
                if span > 1:
                    before, inputs, outputs = tl.load(ints + 1), tl.load(ints + 2), tl.load(ints + 3)
                    in_row, in_col = _code(i, d_row, side, inputs, WRAPS), _code(i, d_col, side, inputs, WRAPS)
                    out_row, out_col = _code(i, d_row, side, outputs, WRAPS), _code(i, d_col, side, outputs, WRAPS)
                    A = _band(out_row[None, :], in_row[:, None], span, before, side, WRAPS)
                    C = _band(out_col[None, :], in_col[:, None], span, before, side, WRAPS)
                    k = _both(k, A, C, ACCURATE)
                    if POOLED or layer > 0:
                        t = _both(t, A, C, ACCURATE)
                w, b, ws, bs = tl.load(floats), tl.load(floats + 1), tl.load(floats + 2), tl.load(floats + 3)
                t = w * t + ws * k + bs
                k = w * k + b
                if tl.load(ints + 4) == _BENT:
                    here, there = (layer * n1 + one) * size * size, (layer * n2 + two) * size * size
                    sx, sy = tl.load(s1 + here + p, inside, 0.0), tl.load(s2 + there + q, inside, 0.0)
                    bend, straight = tl.load(floats + 4), tl.load(floats + 5)
                    k, t = _bend(k, t, sx, sy, bend, straight, tl.load(floats + 6), tl.load(floats + 7), ACCURATE)
                layer += 1
            left_over = ((i < last) & (q_row < last))[:, None] & ((i < last) & (q_col < last))[None, :]
            k, t = tl.where(left_over, k, 0.0), tl.where(left_over, t, 0.0)
            if PHASES:  # of the output, rows and columns are phases and windows
                C = (i // pool)[:, None] == window[None, :]
                C = C & (((i % pool + f_col) // pool)[:, None] == quarter[None, :])
                R = (i // pool)[:, None] == window[None, :]
                R = R & (((i % pool + f_row) // pool)[:, None] == quarter[None, :])
                k, t = _both(k, R, C, ACCURATE), _both(t, R, C, ACCURATE)
            total_k += k
            total_t += t
    scale = tl.load(numbers + layers * 8)
    if PHASES:
        s = last // pool
        phase = quarter[:, None] * 2 + quarter[None, :]
        place = phase * s * s + window[:, None] * s + window[None, :]
        mask = (window[:, None] < s) & (window[None, :] < s)
        target = out + (pair * 2 * groups + group) * 4 * s * s
        tl.store(target + place, total_k * scale, mask)
        tl.store(target + groups * 4 * s * s + place, total_t * scale, mask)
    else:
        target = out + pair * 2 * groups + group
        tl.store(target, tl.sum(total_k) * scale)
        tl.store(target + groups, tl.sum(total_t) * scale)
