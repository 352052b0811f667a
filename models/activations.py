"""Activations by name: torch's own modules where torch has one, ours otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.checks import check_choice


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
    "identity": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """A new module for the activation `name`; an unknown name raises ValueError with the available ones."""
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
