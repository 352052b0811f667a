"""Activations by name: torch's own modules where torch has one, ours otherwise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.checks import check_choice, check_count


class Erf(nn.Module):
    """The Gauss error function."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


class Sin(nn.Module):
    """Sine."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Cos(nn.Module):
    """Cosine."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x)


class Abs(nn.Module):
    """Absolute value."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.abs(x)


class Square(nn.Module):
    """x^2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.square(x)


class Sign(nn.Module):
    """-1, 0 or 1; its derivative is 0, as torch differentiates it, so layers below do not train."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


class Step(nn.Module):
    """1 where x > 0, else 0; its derivative is 0, as torch differentiates it, so layers below do not train."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(torch.relu(x))  # a comparison would cut the graph below


class Exp(nn.Module):
    """The exponential function."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class Gaussian(nn.Module):
    """exp(-x^2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-torch.square(x))


class Power(nn.Module):
    """x^n for a whole number n >= 0; ValueError for any other."""

    def __init__(self, exponent: int) -> None:
        super().__init__()
        check_count("exponent", exponent, minimum=0)
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        return x**self.exponent


class RectifiedPower(Power):
    """relu(x)^n; a step for n = 0."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype) if self.exponent == 0 else torch.relu(x) ** self.exponent


class Hermite(nn.Module):
    """He_n(x) / sqrt(n!), of mean square 1 for a standard normal x; ValueError unless n is a whole number >= 0."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        check_count("degree", degree, minimum=0)
        self.degree = degree

    def forward(self, x: Tensor) -> Tensor:
        previous, current = torch.zeros_like(x), torch.ones_like(x)
        for n in range(self.degree):
            previous, current = current, x * current - n * previous
        return current / math.factorial(self.degree) ** 0.5


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "erf": Erf,
    "sin": Sin,
    "cos": Cos,
    "abs": Abs,
    "square": Square,
    "sign": Sign,
    "step": Step,
    "exp": Exp,
    "gaussian": Gaussian,
    "identity": nn.Identity,
}


def activation(name: str | nn.Module) -> nn.Module:
    """A new module for the activation `name`; an unknown name raises ValueError with the available ones.

    A module, such as a designed activation, is copied instead.
    """
    if isinstance(name, nn.Module):
        return copy.deepcopy(name)
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
