"""What flows through the graph: the kernels of one tile of pairs of inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class NoInfiniteWidthLimit(ValueError):  # noqa: N818 - named after what it says
    """A network, or a part of it, for which no infinite-width limit is known; the message names part and remedy."""


@dataclass(frozen=True)
class Kernels:
    """Kernels of a layer's outputs h for a tile of pairs of inputs, per unit.

    A rule gets this for its module's input and returns it for its output, changing `nngp`, `ntk` (and `gaussian`,
    `units`) with `dataclasses.replace`. Everything is elementwise in the pairs: the same rule is run once on all
    inputs paired with themselves (`diagonal`, tensors [n]) and then on tiles (nngp and ntk [r, c], q1 [r, 1],
    q2 [1, c]). The walker sets `q1`, `q2` and the diagonals of symmetric tiles from the former, so a rule need not.
    """

    nngp: Tensor  # E[h(x) h(x')]
    ntk: Tensor  # sum over the parameters so far of d h(x) . d h(x')
    q1: Tensor  # E[h(x)^2]
    q2: Tensor  # E[h(x')^2]
    units: int  # entries of h for one input
    gaussian: bool  # h is a Gaussian process: the outputs of a random layer
    diagonal: bool  # the pairs are (x, x)
    memo: dict[str, Any] = field(default_factory=dict)  # of this node and call: filled on the diagonal, read by tiles

    def angle(self) -> tuple[Tensor, Tensor]:
        """theta and sqrt(q1 q2) sin(theta), for cos(theta) = nngp / sqrt(q1 q2); exactly 0 on the diagonal.

        By the half angle, tan^2(theta / 2) = (1 - cos) / (1 + cos): arccos would lose half of the digits near 0.
        """
        if self.diagonal:
            return torch.zeros_like(self.nngp), torch.zeros_like(self.nngp)
        scale = self.q1.sqrt() * self.q2.sqrt()
        below = (scale - self.nngp).clamp_min_(0).sqrt_()
        above = scale.add_(self.nngp).clamp_min_(0).sqrt_()
        return torch.atan2(below, above).mul_(2), below.mul_(above)
