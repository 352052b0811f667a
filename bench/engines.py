"""How a batch's outputs and gradients are computed: one interface, and the way that was measured to be the fastest.

    matmul  fully connected networks: a batched matrix product a layer and direction, written by hand (bench/matmul.py)
    loop    one network at a time, by autograd: convolutions on a CPU, where batching loses but for the smallest
    vmap    all networks at once, by autograd: anything else

What is measured is committed (``tests/speed/train_speed.py``, ``docs/results/train_speed.json``); the choice itself is
made by counting, never by a clock: two ways round differently, so that a timed choice would change the bits of a run
from one day to the next, and a resumed run would not equal an undisturbed one.

``torch.compile`` is none of them: compiling takes as long as a default cell, its step is a tenth faster than ``matmul``
at most but for networks whose whole step takes a millisecond, and of CNNs it wins 1.3x at most but for the smallest
("What training costs" in docs/sweeps.md). CUDA graphs are written in the same script, and not measured.
"""

from __future__ import annotations

import copy
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.batch import Batch, forward
from bench.matmul import Matmul, stages
from bench.point import Point

METHODS = ("auto", "matmul", "vmap", "loop")

Place = tuple[MutableMapping[str, Any], str]
"""A module's own parameters, and the name of one of them."""


class Engine(Protocol):
    """Outputs, then gradients of the same point; ``forward`` before every ``backward``."""

    def forward(self, batch: Batch, point: Point) -> Tensor:
        """z, [m, n, c], at the inputs of the batch; valid until the next call, and outside of any graph."""
        ...

    def backward(self, signal: Tensor, gradient: Point) -> None:
        """Into ``gradient``: of ``sum(signal * z)`` in the parameters, for a constant signal [m, n, c]."""
        ...

    def kernel(self, batch: Batch, point: Point, points: int) -> Tensor | None:
        """K_t, [m, points, points], at the first inputs; None where ``empirical_ntk`` is to be asked. ``forward`` comes
        after it."""
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

    def kernel(self, batch: Batch, point: Point, points: int) -> Tensor | None:
        return None


class Loop:
    """Autograd through the module itself, one network: its parameters are put in place, which costs nothing."""

    def __init__(self, batch: Batch) -> None:
        self.net = copy.deepcopy(batch.net)
        places = _places(self.net)
        for name, value in batch.fixed.items():
            _put(places[name], torch.nn.Parameter(value[0], requires_grad=False))
        self.z = torch.empty(0)
        self.leaves: list[Tensor] = []
        self.places = [places[name] for name in batch.params]

    def forward(self, batch: Batch, point: Point) -> Tensor:
        self.leaves = [view[0].detach().requires_grad_() for view in point.views.values()]
        for places, leaf in zip(self.places, self.leaves, strict=True):
            _put(places, leaf)
        self.z = self.net(batch.x[0])
        return self.z.detach()[None]

    def backward(self, signal: Tensor, gradient: Point) -> None:
        gradient.fill(torch.autograd.grad(self.z, self.leaves, signal[0]))

    def kernel(self, batch: Batch, point: Point, points: int) -> Tensor | None:
        return None


def _places(net: torch.nn.Module) -> dict[str, list[Place]]:
    """Where the modules keep the parameter of each name: in several places where they share one."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found: dict[str, list[Place]] = {name: [] for name in names.values()}
    for module in net.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found[names[id(parameter)]].append((module._parameters, key))
    return found


def _put(places: Sequence[Place], value: Tensor) -> None:
    for parameters, key in places:
        parameters[key] = value


def engine(batch: Batch, method: str) -> Engine:
    """The engine of that name for this batch; of "auto", products by hand where there are some."""
    if method in ("auto", "matmul") and (chain := stages(batch.net, batch.x.ndim - 2)) is not None:
        return Matmul(chain)
    return Loop(batch) if len(batch.data) == 1 and method != "vmap" else Vmap()
