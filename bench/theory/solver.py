"""The one equation behind every prediction: sum_i m_i lambda_i / (lambda_i + kappa) + tail(kappa) = n, for kappa.

Solved in log kappa by Newton's method inside a bracket. Modes above kappa are counted (an exact whole number) and enter
by their small unlearned part kappa / (lambda + kappa), modes below it by their small learned part, so nothing cancels:
kappa has full relative precision even where the count of large modes is n and kappa lies in a gap of the spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.theory.contract import mode_sum

_TOLERANCE = 1e-8  # Newton is quadratic: the step after one of this size is below rounding
_STALE = 8.0  # kappa may move by this factor before modes are split anew: no term is above 8/9 then
_MOST_STEPS = 500  # bisection alone needs 64 for all of float64's range
_COARSE = 256  # groups of modes, geometric in their rank, that give the first guess where there are many more
_CACHE = 100_000  # entries of a block: its temporaries stay in the cache of a CPU core
_GPU = 2**24


@dataclass(frozen=True)
class Tail:
    """What the ridge adds to the sum over modes: delta / kappa for gap None.

    With a gap, the positive root s of s (s + gap) = strength / kappa: random features (see there).
    """

    strength: Tensor  # [B], in the units of the eigenvalues
    gap: Tensor | None = None  # [B]

    def __call__(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """The tail and its rate -d tail / d log kappa."""
        level = self.strength / kappa
        if self.gap is None:
            return level, level
        tiny = torch.finfo(level.dtype).tiny  # both are 0 at the peak n = k without ridge
        tail = 2 * level / (self.gap + (self.gap**2 + 4 * level).sqrt()).clamp_min(tiny)
        return tail, tail * (tail + self.gap) / (2 * tail + self.gap).clamp_min(tiny)

    def rows(self, rows: slice) -> Tail:
        return Tail(self.strength[rows], None if self.gap is None else self.gap[rows])


def rank(eigenvalues: Tensor, multiplicities: Tensor | None) -> Tensor:
    """sum of the multiplicities of the modes above 0, [...]."""
    return mode_sum((eigenvalues > 0).to(eigenvalues.dtype), multiplicities)


def solve(
    eigenvalues: Tensor,
    multiplicities: Tensor | None,
    n: Tensor,
    tail: Tail,
    lower: Tensor,
    upper: Tensor,
) -> Tensor:
    """kappa [B], differentiable (three times) in everything but the bracket.

    Args:
        eigenvalues: [B, modes], or [1, modes] shared by all rows; at most of order 1.
        multiplicities: of the same shape, or None.
        n: [B], above 0.
        tail: of the same rows.
        lower, upper: [B], a bracket of the root, above 0.

    Raises:
        ArithmeticError: no convergence (never seen).
    """
    with torch.no_grad():
        kappa = _root(eigenvalues, multiplicities, n, tail, lower, upper)
    inputs = (eigenvalues, multiplicities, n, tail.strength, tail.gap)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        # Two differentiable Newton steps from the root: each squares the error, so the value stays and derivatives up
        # to the third are those of the implicit function.
        split = _split(eigenvalues, multiplicities, kappa)
        for _ in range(2):
            value, slope = _newton(eigenvalues, multiplicities, n, tail, kappa, split)
            kappa = kappa * (value / slope).exp()
    return kappa


def _root(
    eigenvalues: Tensor, multiplicities: Tensor | None, n: Tensor, tail: Tail, lower: Tensor, upper: Tensor
) -> Tensor:
    """From the n-th largest eigenvalue plus strength / n, which is right up to a factor of order 1 on smooth spectra.
    Of many modes the root for groups of them comes first: it is right to some 1e-3, and saves half of the steps."""
    values, order = eigenvalues.sort(-1, descending=True)
    counts = torch.ones_like(values) if multiplicities is None else multiplicities.gather(-1, order)
    cumulative = counts.cumsum(-1)
    if len(eigenvalues) == 1:
        place = torch.searchsorted(cumulative[0], n).clamp_max(values.shape[-1] - 1)
        nth = values[0][place]
    else:
        place = torch.searchsorted(cumulative, n[:, None]).clamp_max(values.shape[-1] - 1)
        nth = values.gather(-1, place)[:, 0]
    kappa = (nth + tail.strength / n).clamp(lower, upper)
    if values.shape[-1] >= 4 * _COARSE:
        kappa = _in_blocks(*_grouped(values, counts), n, tail, lower, upper, kappa)
    return _in_blocks(eigenvalues, multiplicities, n, tail, lower, upper, kappa)


def _in_blocks(
    eigenvalues: Tensor,
    multiplicities: Tensor | None,
    n: Tensor,
    tail: Tail,
    lower: Tensor,
    upper: Tensor,
    start: Tensor,
) -> Tensor:
    shared = len(eigenvalues) == 1
    size = max(1, (_GPU if eigenvalues.is_cuda else _CACHE) // eigenvalues.shape[-1])
    found = []
    for first in range(0, len(n), size):
        rows = slice(first, first + size)
        lam = eigenvalues if shared else eigenvalues[rows]
        count = multiplicities if shared or multiplicities is None else multiplicities[rows]
        found.append(_iterate(lam, count, n[rows], tail.rows(rows), lower[rows], upper[rows], start[rows]))
    return torch.cat(found) if found else start


def _grouped(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted modes in groups, the first of one each: their mean eigenvalues and their sizes, [.., groups]."""
    modes = values.shape[-1]
    edges = torch.logspace(0, math.log10(modes), _COARSE, dtype=torch.float64, device=values.device).round().unique()
    group = torch.bucketize(torch.arange(1, modes + 1, device=values.device, dtype=torch.float64), edges)
    shape = (*values.shape[:-1], len(edges))
    size = counts.new_zeros(shape).index_add_(-1, group, counts)
    total = values.new_zeros(shape).index_add_(-1, group, values * counts)
    return total / size.clamp_min(torch.finfo(size.dtype).tiny), size


def _iterate(
    eigenvalues: Tensor,
    multiplicities: Tensor | None,
    n: Tensor,
    tail: Tail,
    lower: Tensor,
    upper: Tensor,
    kappa: Tensor,
) -> Tensor:
    split = _split(eigenvalues, multiplicities, kappa)
    # Fresh memory for every step would cost more than the arithmetic.
    buffers = tuple(torch.empty_like(split.above) for _ in range(3))
    for _ in range(_MOST_STEPS):
        value, slope = _newton(eigenvalues, multiplicities, n, tail, kappa, split, buffers)
        lower = torch.where(value >= 0, kappa, lower)
        upper = torch.where(value <= 0, kappa, upper)
        following = kappa * (value / slope).exp()
        outside = ~((following >= lower) & (following <= upper))
        following = torch.where(outside, lower.sqrt() * upper.sqrt(), following)
        change = float((following / kappa - 1).abs().amax())
        kappa = following
        moved = float(torch.maximum(kappa / split.at, split.at / kappa).amax())
        if moved > _STALE:
            split = _split(eigenvalues, multiplicities, kappa)
        elif change < _TOLERANCE:
            return kappa
    raise ArithmeticError(f"No convergence of kappa: the last relative step was {change:.3g}.")


@dataclass(frozen=True)
class _Split:
    at: Tensor  # [B], the kappa at which modes were split
    above: Tensor  # [B, modes], 1 for modes above it, 0 for the others
    small: Tensor  # [B, modes], the eigenvalues of the others, 0 for modes above
    count: Tensor  # [B], modes above


def _split(eigenvalues: Tensor, multiplicities: Tensor | None, kappa: Tensor) -> _Split:
    above = (eigenvalues > kappa[:, None]).to(eigenvalues.dtype)
    return _Split(kappa, above, eigenvalues * (1 - above), mode_sum(above, multiplicities))


def _newton(
    eigenvalues: Tensor,
    multiplicities: Tensor | None,
    n: Tensor,
    tail: Tail,
    kappa: Tensor,
    split: _Split,
    buffers: tuple[Tensor | None, ...] = (None, None, None),
) -> tuple[Tensor, Tensor]:
    """A function of log kappa that is 0 at the root and falls through it, and minus its slope; both [B].

    With N modes above the split: learned = sum of L below it + tail, unlearned = sum of 1 - L above it, the equation is
    learned - unlearned = n - N. The term n - N goes to the side where it is positive, and logarithms are compared.
    """
    column = kappa[:, None]
    inverse = torch.add(eigenvalues, column, out=buffers[0]).reciprocal_()
    learned = torch.mul(split.small, inverse, out=buffers[1])
    unlearned = torch.mul(inverse, column, out=buffers[2]).mul_(split.above)
    total, left_rate = _sums(learned, multiplicities, buffers[0])
    right, right_rate = _sums(unlearned, multiplicities, buffers[0])
    extra, extra_rate = tail(kappa)
    left, left_rate = total + extra, left_rate + extra_rate
    remainder = n - split.count
    left = torch.where(remainder < 0, left - remainder, left)
    right = torch.where(remainder < 0, right, right + remainder)
    return (left / right).log(), left_rate / left + right_rate / right


def _sums(shares: Tensor, multiplicities: Tensor | None, buffer: Tensor | None) -> tuple[Tensor, Tensor]:
    """sum m w and sum m w (1 - w)."""
    counted = shares if multiplicities is None else shares * multiplicities
    total = counted.sum(-1)
    return total, total - torch.mul(counted, shares, out=buffer).sum(-1)
