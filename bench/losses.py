"""What training minimises, of the outputs f alone: mean squared error and the two cross-entropies, member by member.

Every loss is a mean over the N training points. Shapes: m members, c outputs; f and y [m, N, c].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

LOSSES = ("mse", "logistic", "softmax")


class Loss(Protocol):
    """One loss. ``curved``: whether its second derivative in f is anything but the identity."""

    curved: ClassVar[bool]

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """L, [m]."""
        ...

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """N dL/df, [m, N, c]: the residual r of the flow ``df/dt = -(1/N) K r``."""
        ...

    def root(self, f: Tensor) -> Tensor:
        """A with ``A A' = d^2 (N L) / df^2`` at every point, [m, N, c, c]."""
        ...

    def check(self, y: Tensor) -> None:
        """Raises: ValueError where y [N, c] is not what this loss is of."""
        ...


@dataclass(frozen=True)
class Mse:
    """``1/(2N) sum (f - y)^2``."""

    curved: ClassVar[bool] = False

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y).flatten(1).square().sum(1) / (2 * f.shape[1])

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return f - y

    def root(self, f: Tensor) -> Tensor:
        return torch.eye(f.shape[2]).to(f).expand(*f.shape, f.shape[2])

    def check(self, y: Tensor) -> None:
        pass


@dataclass(frozen=True)
class Logistic:
    """``1/N sum log(1 + exp(-y f))`` of one logit a class pair, with y = +1 or -1."""

    curved: ClassVar[bool] = True

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return functional.softplus(-y * f).flatten(1).sum(1) / f.shape[1]

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return -y * torch.sigmoid(-y * f)

    def root(self, f: Tensor) -> Tensor:
        return torch.diag_embed((torch.sigmoid(f) * torch.sigmoid(-f)).sqrt())

    def check(self, y: Tensor) -> None:
        if not y.is_meta and not bool((y.abs() == 1).all()):
            raise ValueError("trainer.loss=logistic needs labels +1 and -1, and the task has others: use mse.")


@dataclass(frozen=True)
class Softmax:
    """``1/N sum -log softmax(f)[class]``; the class of a row of y is its largest entry (one-hot, shifted or not)."""

    curved: ClassVar[bool] = True

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        right = f.gather(2, y.argmax(2, keepdim=True))[:, :, 0]
        return (f.logsumexp(2) - right).sum(1) / f.shape[1]

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return f.softmax(2) - functional.one_hot(y.argmax(2), f.shape[2]).to(f)

    def root(self, f: Tensor) -> Tensor:
        p = f.softmax(2)  # (diag sqrt(p) - p sqrt(p)')(...)' = diag p - p p', for p sums to 1
        return torch.diag_embed(p.sqrt()) - p[..., :, None] * p.sqrt()[..., None, :]

    def check(self, y: Tensor) -> None:
        if y.shape[1] < 2:
            other = "logistic" if y.is_meta or bool((y.abs() == 1).all()) else "mse"
            raise ValueError(f"trainer.loss=softmax needs two outputs or more, and the task has one: use {other}.")
        if not y.is_meta and bool(((y == y.amax(1, keepdim=True)).sum(1) != 1).any()):
            raise ValueError("trainer.loss=softmax needs one largest label in every row: use mse.")


def loss_of(name: str) -> Loss:
    """The loss of that name, one of ``LOSSES``."""
    losses: dict[str, Loss] = {"mse": Mse(), "logistic": Logistic(), "softmax": Softmax()}
    return losses[name]
