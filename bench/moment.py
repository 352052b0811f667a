"""What a descent shows of itself to whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """A batch in the middle of its training; row i of everything is the i-th member still at work.

    Attributes:
        members: their places in the batch, [m].
        params: the trained parameters now, name -> [m, ...]; to be read, not kept.
        steps, momenta: of each member, all that it has taken, [steps] each.
        losses: the last relative train loss known, [m]: of the point one step (with mini-batches, one epoch) before,
            at the time ``loss_times``; nan before the first.
        loss_times: [m].
    """

    members: Sequence[int]
    params: Mapping[str, Tensor]
    steps: Sequence[np.ndarray]
    momenta: Sequence[np.ndarray]
    losses: np.ndarray
    loss_times: np.ndarray


class Watch(Protocol):
    """Watches one batch of a trainer's members."""

    def due(self, iteration: int) -> bool:
        """Asked every iteration, so it must be cheap: whether to be shown the moment before it."""

    def look(self, moment: Moment) -> None:
        """Nothing that it does changes the training."""
