"""How a batch's outputs and gradients are computed: one interface, and the way that was measured to be the fastest.

    matmul  fully connected networks: a batched matrix product a layer and direction, written by hand (bench/matmul.py)
    loop    one network at a time, by autograd: convolutions on a CPU, where batching loses but for the smallest
    vmap    all networks at once, by autograd: anything else

What is measured is committed (``tests/speed/train_speed.py``, ``docs/results/train_speed.json``); the choice itself is
made by counting, never by a clock: two ways round differently, so that a timed choice would change the bits of a run
from one day to the next, and a resumed run would not equal an undisturbed one.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor

from bench.batch import Batch, forward
from bench.matmul import Matmul, stages
from bench.point import Point

METHODS = ("auto", "matmul", "vmap", "loop")


class Engine(Protocol):
    """Outputs, then gradients of the same point; ``forward`` before every ``backward``."""

    def forward(self, batch: Batch, point: Point) -> Tensor:
        """z, [m, n, c], at the inputs of the batch; valid until the next call, and outside of any graph."""
        ...

    def backward(self, signal: Tensor, gradient: Point) -> None:
        """Into ``gradient``: of ``sum(signal * z)`` in the parameters, for a constant signal [m, n, c]."""
        ...


class Vmap:
    """Autograd through ``torch.func``: any module of torch's functions."""

    def __init__(self) -> None:
        self.z = torch.empty(0)
        self.leaves: list[Tensor] = []

    def forward(self, batch: Batch, point: Point) -> Tensor:
        self.leaves = [view.detach().requires_grad_() for view in point.tensors]
        self.z = forward(batch, dict(zip(point.views, self.leaves, strict=True)), batch.x)
        return self.z.detach()

    def backward(self, signal: Tensor, gradient: Point) -> None:
        gradient.fill(torch.autograd.grad(self.z, self.leaves, signal))


class Loop:
    """Autograd through the module itself, one network: its parameters are put in place, which costs nothing."""

    def __init__(self, batch: Batch) -> None:
        self.net = copy.deepcopy(batch.net)
        for name, value in batch.fixed.items():
            self._put(name, value[0])
        self.z = torch.empty(0)
        self.leaves: list[Tensor] = []
        self.slots = [_slot(self.net, name) for name in batch.params]

    def _put(self, name: str, value: Tensor) -> None:
        parameters, key = _slot(self.net, name)
        parameters[key] = torch.nn.Parameter(value, requires_grad=False)

    def forward(self, batch: Batch, point: Point) -> Tensor:
        self.leaves = [view[0].detach().requires_grad_() for view in point.views.values()]
        for (parameters, key), leaf in zip(self.slots, self.leaves, strict=True):
            parameters[key] = leaf
        self.z = self.net(batch.x[0])
        return self.z.detach()[None]

    def backward(self, signal: Tensor, gradient: Point) -> None:
        gradient.fill(torch.autograd.grad(self.z, self.leaves, signal[0]))


def _slot(net: torch.nn.Module, name: str) -> tuple[dict[str, Tensor | None], str]:
    """Where a module keeps the parameter of that name."""
    owner, _, key = name.rpartition(".")
    return net.get_submodule(owner)._parameters, key  # type: ignore[return-value]


def engine(batch: Batch, method: str) -> Engine:
    """The engine of that name for this batch; of "auto", products by hand where there are some."""
    if method in ("auto", "matmul") and (chain := stages(batch.net, batch.x.ndim - 2)) is not None:
        return Matmul(chain)
    return Loop(batch) if len(batch.data) == 1 and method != "vmap" else Vmap()
