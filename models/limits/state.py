"""What flows through the graph: the kernels of some pairs of inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

SAME = 8  # roundings that a cosine of equal inputs may differ from 1


class NoInfiniteWidthLimit(ValueError):  # noqa: N818 - named after what it says
    """A network, or a part of it, for which no infinite-width limit is known; the message names part and remedy."""


@dataclass(frozen=True)
class Kernels:
    """Kernels of a layer's outputs h for some pairs of inputs, per unit (or channel).

    A rule gets this for its module's input and returns it for its output, changing what changes with
    `dataclasses.replace`. A tensor's axes are *pairs, then positions: none for vectors, [H, W] for an image whose
    covariance is kept at equal pixels, [H, W, H', W'] where it is kept between all pixels (`full`). Rules count
    axes from the end, because pairs are [r, c] for a tile and [n] for inputs paired with themselves.
    """

    nngp: Tensor  # E[h(x) h(x')]
    ntk: Tensor  # sum over the parameters so far of d h(x) . d h(x')
    channels: int  # units at one position
    space: tuple[int, ...] = ()  # positions: (), (length,) or (height, width)
    channel_axis: int = 1  # of the layer's output [n, ...]
    flat: bool = False  # flattened: positions are units too
    full: bool = False  # covariances between all positions, not only equal ones
    gaussian: bool = False  # h is a Gaussian process: the outputs of a random layer
    gain: int = 0  # trained factors of each unit, not in `ntk`: h varies by `gain` times itself, so not independently
    gain_each: bool = False  # one factor a position, not a channel
    tied: bool = False  # `ntk` has such a part of units that have since been mixed with others
    diagonal: bool = False  # the pairs are (x, x) at equal positions
    same: Literal["none", "tile", "all"] = "none"  # pairs of one input with itself: the first columns of a tile, or all
    variances: tuple[Tensor, Tensor] | None = None
    mean: Tensor | None = None  # E[h(x)] of inputs with themselves [n, *positions]; None: 0 if gaussian, else not known
    means: tuple[Tensor, Tensor] | None = None  # of x and x', for rules that said they read them
    mixing: tuple[Tensor, Tensor] | None = None  # of attention: weights of x and of x' that broadcast as matrices
    memo: dict[str, Any] = field(default_factory=dict)  # of this step and call: filled on the diagonal, read by tiles

    @property
    def units(self) -> int:
        """Entries that a following linear layer sums over."""
        return self.channels * math.prod(self.space) if self.flat else self.channels

    @property
    def q1(self) -> Tensor:
        """E[h(x)^2], broadcastable to `nngp`; for rules that said they read variances."""
        return self._variance(0)

    @property
    def q2(self) -> Tensor:
        """E[h(x')^2]."""
        return self._variance(1)

    def _variance(self, which: int) -> Tensor:
        if self.variances is None:
            raise NoInfiniteWidthLimit("its rule reads variances, so it must be registered with variances=True")
        return self.variances[which]

    def angle(self) -> tuple[Tensor, Tensor]:
        """theta and sqrt(q1 q2) sin(theta), for cos(theta) = nngp / sqrt(q1 q2); exactly 0 on the diagonal.

        By the half angle, tan^2(theta / 2) = (1 - cos) / (1 + cos): arccos would lose half of the digits near 0.
        """
        if self.diagonal:
            return torch.zeros_like(self.nngp), torch.zeros_like(self.nngp)
        scale = self.scale()
        below = (scale - self.nngp).clamp_min_(0).sqrt_()
        above = scale.add_(self.nngp).clamp_min_(0).sqrt_()
        return torch.atan2(below, above).mul_(2), below.mul_(above)

    def scale(self) -> Tensor:
        """sqrt(q1 q2), which |nngp| cannot exceed but by rounding.

        In float64 some roundings less, so that the cosine of equal inputs counts as 1: a jump magnifies what is left
        of their angle in each layer, and large inputs make any smooth function a jump.
        """
        rounding = SAME * torch.finfo(torch.float64).eps if self.nngp.dtype == torch.float64 else 0.0
        return (self.q1.sqrt() * (1 - rounding)) * self.q2.sqrt()

    def with_gain(self, nngp: Tensor, **changes: Any) -> Kernels:
        """The NTK with the part of trained factors, `gain` times `nngp`, and these changes."""
        if not self.gain:
            return replace(self, **changes)
        if self.gain_each and self.full:  # factors of two positions are different parameters
            ntk = self.ntk.clone()
            axes = len(self.space)
            equal_positions(ntk, axes).add_(equal_positions(nngp, axes), alpha=float(self.gain))
        else:
            ntk = torch.add(self.ntk, nngp, alpha=float(self.gain))
        return replace(self, ntk=ntk, gain=0, gain_each=False, **changes)

    def at_equal_positions(self) -> Kernels:
        """The same without the covariances between different positions (and without variances)."""
        if not self.full:
            return self
        nngp, ntk = (equal_positions(t, len(self.space)) for t in (self.nngp, self.ntk))
        return replace(self, nngp=nngp, ntk=ntk, full=False, variances=None)

    def with_axes(self, axes: int) -> Kernels:
        """The same with axes of one position each, after all positions were averaged."""
        shape = (*self.nngp.shape, *[1] * (2 * axes))
        mean = None if self.mean is None else self.mean.reshape(*self.mean.shape, *[1] * axes)
        return replace(self, nngp=self.nngp.reshape(shape), ntk=self.ntk.reshape(shape), mean=mean, full=True)

    def positions(self) -> str:
        """For error messages."""
        return f"{'x'.join(map(str, self.space))} positions" if self.space else "no positions"


def equal_positions(kernel: Tensor, axes: int) -> Tensor:
    """[*pairs, *positions, *positions'] -> [*pairs, *positions] at equal ones: a view."""
    for done in range(axes):
        kernel = kernel.diagonal(dim1=-2 * axes + done, dim2=-axes)
        # diagonal moves the shared axis to the end: [*, rest of positions, rest of positions', done ...]
    return kernel
