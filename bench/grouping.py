"""Which members train together: as many as memory holds, or one at a time where that is faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bench.matmul import stages
from bench.networks import activations_of, fan_out, weight_layers
from bench.trained import Member
from models.blocks import budget
from tasks.task import Task

CACHE = 2**19
"""Bytes of one member's widest activations above which a CPU trains members by autograd one after another: batching it
only pays where a step is so short that calling it costs more than doing it (docs/results/train_speed.json). Products by
hand are batched at any size: there it was never slower."""
CONVOLVED = 2**18
"""The same for all activations of a network that convolves: batched convolutions lose once they do more than start."""
COPIES = 5
"""Of a member's parameters that training holds at once: two points, a gradient, and an optimiser's state twice."""
LIVE = 3
"""Of a member's activations: those kept for the way back, and two at work."""


@dataclass(frozen=True)
class Cost:
    """Of one member, in bytes: ``memory`` while it trains, ``activations`` of all layers on all training points, and
    units of the ``widest`` layer on them."""

    memory: int
    activations: int
    widest: int
    convolves: bool
    is_chain: bool

    @classmethod
    def of(cls, model: nn.Module, task: Task, itemsize: int, kept: int) -> Cost:
        """Args: kept: copies of the parameters that snapshots keep."""
        layers = weight_layers(model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        activations = task.n_train * activations_of(model, task)
        inputs = task.n_train * task.x_train[0].numel()
        return cls(
            memory=itemsize * ((COPIES + kept) * parameters + LIVE * activations + inputs),
            activations=itemsize * activations,
            widest=itemsize * task.n_train * max((fan_out(layer) for layer in layers), default=1),
            convolves=any(layer.get_parameter("weight").ndim > 2 for layer in layers),
            is_chain=stages(model, task.x_train.ndim - 1) is not None,
        )


def groups(members: Sequence[Member], cost: Cost, device: torch.device, method: str) -> list[list[Member]]:
    """The members that train together, in order: by counting alone, so that the same settings give the same bits.

    ``method``: of ``bench.engines``; only "auto" counts speed, and "loop" is one by one.
    """
    large = cost.activations > CONVOLVED if cost.convolves else cost.widest > CACHE
    if method == "loop" or (method == "auto" and large and not cost.is_chain and device.type == "cpu"):
        return [[member] for member in members]
    most, room = len(members), budget(None, (torch.empty(0, device=device),))
    while most > 1 and most * cost.memory > room:
        most = math.ceil(most / 2)  # so that a little more or less memory cuts alike
    return [list(members[i : i + most]) for i in range(0, len(members), most)]
