"""How parameters move, given gradients: the plain step, momentum of two kinds, Adam; all of them member by member.

Every optimiser keeps its ``state`` in tensors with a leading member axis, so that the descent can drop members, take
steps back and write checkpoints without knowing which optimiser it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from bench.networks import weight_layers
from bench.point import Point, along

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Optimiser(Protocol):
    state: list[Tensor]

    def weight(self, gamma: Tensor, rates: Tensor) -> Tensor:
        """What the gradient of the objective is to be multiplied with before ``move``, [m]."""
        ...

    def move(self, start: Point, end: Point, gradient: Point, rates: Tensor, momenta: Tensor) -> None:
        """One step.

        Args:
            end: what it comes to; may be ``start``.
            gradient: may be overwritten.
            rates: step sizes, [m].
            momenta: shares of the last move for Nesterov's momentum, [m].
        """
        ...


class Plain:
    """``theta -= eta gamma^2 grad``."""

    def __init__(self) -> None:
        self.state: list[Tensor] = []

    def weight(self, gamma: Tensor, rates: Tensor) -> Tensor:
        return gamma.square() * rates

    def move(self, start: Point, end: Point, gradient: Point, rates: Tensor, momenta: Tensor) -> None:
        torch.sub(start.flat, gradient.flat, out=end.flat)


class Nesterov(Plain):
    """The plain step, then on by a share of the way from where the step before ended to where this one did."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.state = [parameter.detach().clone() for parameter in params]

    def move(self, start: Point, end: Point, gradient: Point, rates: Tensor, momenta: Tensor) -> None:
        torch.sub(start.flat, gradient.flat, out=end.flat)
        for parameter, reached in zip(end.tensors, self.state, strict=True):
            moved = (parameter - reached) * along(momenta, parameter)
            reached.copy_(parameter)
            parameter.add_(moved)


class HeavyBall:
    """``v <- mu v + gamma^2 grad; theta -= eta v`` (Polyak), as torch.optim.SGD has it."""

    def __init__(self, params: Sequence[Tensor], momentum: float) -> None:
        self.state = [torch.zeros_like(parameter) for parameter in params]
        self.momentum = momentum

    def weight(self, gamma: Tensor, rates: Tensor) -> Tensor:
        return gamma.square()

    def move(self, start: Point, end: Point, gradient: Point, rates: Tensor, momenta: Tensor) -> None:
        torch._foreach_mul_(self.state, self.momentum)
        torch._foreach_add_(self.state, gradient.tensors)
        for before, after, velocity in zip(start.tensors, end.tensors, self.state, strict=True):
            torch.sub(before, velocity * along(rates, before), out=after)


class Adam:
    """Adam (Kingma and Ba 2015), as torch.optim.Adam has it, with a factor on the rate of every parameter.

    It sees gamma grad, whose size does not depend on gamma, so that epsilon means the same at any richness.
    """

    def __init__(self, params: Sequence[Tensor], factors: Sequence[float]) -> None:
        zeros = [torch.zeros_like(parameter) for parameter in params]
        self.state = [*zeros, *(zero.clone() for zero in zeros), zeros[0].new_zeros(len(zeros[0]))]
        self.factors = list(factors)

    def weight(self, gamma: Tensor, rates: Tensor) -> Tensor:
        return gamma

    def move(self, start: Point, end: Point, gradient: Point, rates: Tensor, momenta: Tensor) -> None:
        gradients, count = gradient.tensors, len(gradient.tensors)
        first, second, steps = self.state[:count], self.state[count:-1], self.state[-1]
        steps.add_(1)
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        corrections = [1 - beta**steps for beta in BETAS]
        moments = zip(start.tensors, end.tensors, first, second, self.factors, strict=True)
        for before, after, mean, square, factor in moments:
            size = (square / along(corrections[1], square)).sqrt_().add_(EPSILON)
            torch.sub(before, mean / size * along(factor * rates / corrections[0], before), out=after)


def adam_factors(net: nn.Module, names: Sequence[str]) -> list[float]:
    """On Adam's rate, so that no pre-activation moves further in a wider network.

    The weights of a hidden-to-hidden layer all move alike, by the rate, and add up over fan_in units: in NTK
    parameterization (which divides by sqrt(fan_in)) the rate is to be multiplied by 1/sqrt(fan_in), in standard
    parameterization by 1/fan_in (Yang and Hu 2021).
    """
    named = {module: name for name, module in net.named_modules()}
    factors = {}
    for module in weight_layers(net)[1:-1]:
        fan_in = module.get_parameter("weight")[0].numel()
        power = -0.5 if getattr(module, "parameterization", "standard") == "ntk" else -1.0
        factors[f"{named[module]}.weight"] = fan_in**power
    return [factors.get(name, 1.0) for name in names]
