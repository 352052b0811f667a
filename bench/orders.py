"""The order of mini-batches: a fresh permutation of the training set every epoch, from each member's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bench.batch import Batch


class Orders:
    """One stream of permutations a member, drawn on the CPU so that every device sees the same ones."""

    def __init__(self, seeds: Sequence[int], size: int) -> None:
        self.size = size
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def epoch(self, batch: Batch, members: Sequence[int]) -> list[Batch]:
        """The mini-batches of one epoch of these members, the rows of ``batch``; the last may be smaller."""
        n = batch.x.shape[1]
        order = torch.stack([torch.randperm(n, generator=self.generators[member]) for member in members])
        order = order.to(batch.x.device)
        rows = torch.arange(len(order), device=order.device)[:, None]
        return [
            replace(batch, x=batch.x[rows, part], y=batch.y[rows, part], z_0=batch.z_0[rows, part])
            for part in order.split(self.size, 1)
        ]

    def state(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self.generators]

    def restore(self, state: Sequence[torch.Tensor]) -> None:
        for generator, one in zip(self.generators, state, strict=True):
            generator.set_state(one.cpu())
