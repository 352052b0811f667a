"""Where a batch of networks stands: all trained parameters in one vector, so that a step is one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """``flat``: every number; ``views`` of it by parameter, each contiguous, [m, *shape]: the members lead."""

    flat: Tensor
    views: Mapping[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Point:
        """A copy of these, [m, *shape] each."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])
        parts = flat.split([tensor.numel() for tensor in tensors.values()])
        views = {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, tensors.items(), strict=True)}
        return cls(flat, views)

    def like(self) -> Point:
        """Another of this shape, with the same values."""
        return Point.of(self.views)

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.views.values())

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Take these values, one tensor a view."""
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=self.flat)

    def scale(self, factors: Tensor) -> None:
        """Multiply every member by its factor, [m]."""
        for view in self.views.values():
            view.mul_(along(factors, view))

    def squares(self) -> Tensor:
        """The sum of squares, member by member, [m]."""
        return torch.stack([view.flatten(1).square().sum(1) for view in self.views.values()]).sum(0)


def along(values: Tensor, like: Tensor) -> Tensor:
    """[m] with as many axes as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))
