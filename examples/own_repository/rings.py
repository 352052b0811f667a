"""Our task and our model: any function that makes a Task, and any ordinary torch module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import Linear
from tasks.task import Task


def rings(n_train: int, n_test: int, seed: int) -> Task:
    """Is a point of the plane on a ring or between rings? y = cos(2 |x|), x normal."""
    x = torch.randn(n_train + n_test, 2, generator=torch.Generator().manual_seed(seed))
    y = torch.cos(2 * x.norm(dim=1, keepdim=True))
    return Task("rings", x[:n_train], y[:n_train], x[n_train:], y[n_train:])


class Residual(nn.Module):
    """A GELU network with one residual block, in NTK parameterization: its infinite-width limit is derived from it."""

    def __init__(self, width: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.width = width  # hidden units: the trainer and the theory read it
        self.first = Linear(2, width, w_std=2**0.5, b_std=0.5)
        self.block = Linear(width, width, w_std=1.0, b_std=0.0)
        self.last = Linear(width, 1, w_std=1.0, b_std=None)
        self.activation = activation or nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        z = z + self.block(self.activation(z))
        return self.last(self.activation(z))
