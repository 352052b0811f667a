"""Fully connected networks forward and backward by hand: two batched matrix products a layer and direction.

    h_l = phi(alpha_l h_(l-1) W_l' + beta_l b_l),   z = h_L
    d_L = signal,   dW_l = alpha_l d_l' h_(l-1),   db_l = beta_l sum_n d_l,   d_(l-1) = phi'(.) alpha_l d_l W_l

The factors of the parameterization go into the products, buffers are allocated once, and no graph is built. Where a
derivative has a kink it is autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.batch import Batch
from bench.point import Point
from models.activations import ACTIVATIONS, Hermite, Power, RectifiedPower
from models.layers import Linear

ELEMENTWISE = (*(kind for kind in ACTIVATIONS.values() if isinstance(kind, type)), Power, RectifiedPower, Hermite)
"""Modules without parameters that act number by number, so that a leading member axis means nothing to them."""

NARROW = 16
"""Inputs of a layer up to which a CPU makes its gradient by the transposed product and turns it: a tall result of few
columns is what its products are slow at (measured: 8 inputs, 3.5x at any width; 16 inputs, 1.1x to 2.3x; 32, none)."""

Graph = tuple[Tensor, Tensor]
"""An activation's input and output, with autograd's graph between: of those whose derivative is not written here."""

_aten = torch.ops.aten
IN_PLACE: dict[type, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu_, lambda d, h: _aten.threshold_backward.grad_input(d, h, 0, grad_input=d)),
    nn.Tanh: (torch.tanh_, lambda d, h: _aten.tanh_backward.grad_input(d, h, grad_input=d)),
    nn.Sigmoid: (torch.sigmoid_, lambda d, h: _aten.sigmoid_backward.grad_input(d, h, grad_input=d)),
}
"""Activations whose derivative is a function of their output h: both ways in place, the way back as autograd has it."""


@dataclass(frozen=True)
class Stage:
    """A linear layer and the activation behind it: names of its parameters and the factors that they come with."""

    weight: str
    bias: str | None
    alpha: float
    beta: float
    activation: nn.Module | None


def stages(net: nn.Module, axes: int = 1) -> list[Stage] | None:
    """The network as a chain of stages, for samples of so many axes; None where it is not one."""
    found: list[Stage] = []
    names = {name for name, _ in net.named_parameters()}
    modules = list(_leaves(net, ""))
    if len({id(module) for _, module in modules}) < len(modules) or any(_is_hooked(m) for m in net.modules()):
        return None
    flat = axes == 1
    for name, module in modules:
        if type(module) is nn.Flatten and not found and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif type(module) in (Linear, nn.Linear) and flat and f"{name}.weight" in names:
            alpha, beta = _factors(module)
            bias = None if module.bias is None else f"{name}.bias"
            found.append(Stage(f"{name}.weight", bias, alpha, beta, None))
        elif type(module) in ELEMENTWISE and found and found[-1].activation is None:
            if getattr(module, "inplace", False) and type(module) is not nn.ReLU:
                return None
            last = found.pop()
            found.append(Stage(last.weight, last.bias, last.alpha, last.beta, module))
        else:
            return None
    known = {name for stage in found for name in (stage.weight, stage.bias) if name}
    return found if found and known == names else None


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested ``Sequential``, in order, by name."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for key, child in module._modules.items():  # named_children would leave out what comes twice
        if child is not None:
            yield from _leaves(child, f"{name}.{key}" if name else key)


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module)
    )


def _factors(module: nn.Module) -> tuple[float, float]:
    """Of weight and bias in the layer's output."""
    if isinstance(module, Linear) and module.parameterization == "ntk":
        return module.w_std / math.sqrt(module.fan_in), module.b_std or 0.0
    return 1.0, 1.0


class Matmul:
    """An engine (bench/engines.py) of such a chain."""

    def __init__(self, chain: list[Stage]) -> None:
        self.chain = chain
        self.room: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.graphs: list[Graph | None] = []
        self.weights: list[Tensor] = []

    def forward(self, batch: Batch, point: Point) -> Tensor:
        h = batch.x.flatten(2)
        m, n, _ = h.shape
        self.inputs, self.graphs, self.weights = [h], [], []
        for i, stage in enumerate(self.chain):
            weight = _value(batch, point, stage.weight)
            out = self._buffer(f"h {i}", (m, n, weight.shape[1]), h)
            if stage.bias is None:
                torch.baddbmm(out, h, weight.mT, beta=0, alpha=stage.alpha, out=out)
            else:
                bias = _value(batch, point, stage.bias)[:, None]
                torch.baddbmm(bias, h, weight.mT, beta=stage.beta, alpha=stage.alpha, out=out)
            h, graph = _activate(stage.activation, out)
            self.graphs.append(graph)
            self.inputs.append(h)
            self.weights.append(weight)
        return h

    def backward(self, signal: Tensor, gradient: Point) -> None:
        for stage, h, delta in self._deltas(signal, gradient):
            if (weight := gradient.views.get(stage.weight)) is not None:
                self._weight_gradient(delta, h, stage.alpha, weight)
            if stage.bias is not None and (bias := gradient.views.get(stage.bias)) is not None:
                row, ones = bias[:, None], delta.new_ones(1).expand(len(delta), 1, delta.shape[1])
                torch.baddbmm(row, ones, delta, beta=0, alpha=stage.beta, out=row)  # up to 4x faster than a sum

    def kernel(self, batch: Batch, point: Point, points: int) -> Tensor | None:
        if _value(batch, point, self.chain[-1].weight).shape[1] > 1:
            return None
        z = self.forward(replace(batch, x=batch.x[:, :points]), point)
        total = z.new_zeros(len(z), points, points)
        for stage, h, delta in self._deltas(torch.ones_like(z), point):
            deltas = delta @ delta.mT
            if stage.weight in point.views:
                total += stage.alpha**2 * deltas * (h @ h.mT)
            if stage.bias in point.views:
                total += stage.beta**2 * deltas
        return total

    def _deltas(self, signal: Tensor, trained: Point) -> Iterator[tuple[Stage, Tensor, Tensor]]:
        """The stages from the last to the lowest that has something trained, each with its input and the gradient of
        ``sum(signal * z)`` in the output of its linear layer."""
        lowest = min(i for i, stage in enumerate(self.chain) if _is_trained(stage, trained))
        delta = signal if self.chain[-1].activation is None else signal.clone()
        for i in reversed(range(lowest, len(self.chain))):
            stage, h = self.chain[i], self.inputs[i]
            delta = _pull(stage.activation, delta, self.inputs[i + 1], self.graphs[i])
            yield stage, h, delta
            if i > lowest:
                below = self._buffer(f"d {i}", h.shape, h)
                if delta.shape[2] == 1:  # of one output: no product of matrices, and 2x faster
                    delta = torch.mul(delta * stage.alpha, self.weights[i], out=below)
                else:
                    delta = torch.baddbmm(below, delta, self.weights[i], beta=0, alpha=stage.alpha, out=below)

    def _weight_gradient(self, delta: Tensor, h: Tensor, alpha: float, weight: Tensor) -> None:
        """``alpha delta' h`` into weight, [m, fan_out, fan_in]."""
        fan_out, fan_in = weight.shape[1:]
        if weight.device.type == "cpu" and fan_in <= NARROW < fan_out:
            turned = self._buffer("turned", (len(h), fan_in, fan_out), h)
            torch.baddbmm(turned, h.mT, delta, beta=0, alpha=alpha, out=turned)
            weight.copy_(turned.mT)
        else:
            torch.baddbmm(weight, delta.mT, h, beta=0, alpha=alpha, out=weight)

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Room that the next call of this shape finds again; fewer members or points use a part of it."""
        size = math.prod(shape)
        room = self.room.get(name)
        if room is None or room.numel() < size or room.dtype != like.dtype or room.device != like.device:
            room = self.room[name] = torch.zeros(size, dtype=like.dtype, device=like.device)
        return room[:size].view(shape)


def _value(batch: Batch, point: Point, name: str) -> Tensor:
    return point.views[name] if name in point.views else batch.fixed[name]


def _is_trained(stage: Stage, gradient: Point) -> bool:
    return stage.weight in gradient.views or (stage.bias is not None and stage.bias in gradient.views)


def _activate(activation: nn.Module | None, out: Tensor) -> tuple[Tensor, Graph | None]:
    """The activation's output, in the place of ``out`` where its derivative is one of the output."""
    kind = type(activation)
    if activation is None or kind is nn.Identity:
        return out, None
    if kind in IN_PLACE:
        return IN_PLACE[kind][0](out), None
    leaf = out.detach().requires_grad_()
    with torch.enable_grad():
        after = activation(leaf)
    return after.detach(), (leaf, after)


def _pull(activation: nn.Module | None, delta: Tensor, after: Tensor, graph: Graph | None) -> Tensor:
    """The way back through the activation; ``delta`` may be overwritten."""
    kind = type(activation)
    if activation is None or kind is nn.Identity:
        return delta
    if kind in IN_PLACE:
        return IN_PLACE[kind][1](delta, after)
    assert graph is not None
    leaf, value = graph
    return torch.autograd.grad(value, leaf, delta)[0] if value.requires_grad else torch.zeros_like(delta)
