"""What a network is trained on: inputs, targets, and the little that a theory needs to know about them."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

DOMAINS = ("hypercube", "sphere", "circle")


@dataclass(frozen=True, eq=False)
class Task:
    """A regression problem with fixed training and test points.

    Attributes:
        name: short, and usable in the name of a folder.
        x_train: [n_train, *shape], float32 (all four tensors have one dtype and one device; float64 is allowed).
        y_train: [n_train, c], with label noise if ``noise`` is not 0.
        x_test: [n_test, *shape].
        y_test: [n_test, c], always clean.
        domain: the set on which the inputs are uniform, "hypercube" ({-1,1}^d), "sphere" (of radius sqrt d) or
            "circle" (of radius sqrt 2), so that a theory knows the spectrum; None for any other inputs.
        noise: variance of the Gaussian noise on the training labels.

    Raises:
        ValueError: shapes, dtypes or devices disagree, a tensor is empty or not finite, or a field is out of range.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    domain: str | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"name of a task must be letters, digits, '.', '_' or '-', beginning with a letter or digit, "
                f"got {self.name!r}."
            )
        if self.domain is not None and self.domain not in DOMAINS:
            raise ValueError(f"domain of task '{self.name}' must be None or one of {DOMAINS}, got {self.domain!r}.")
        _check_noise(self.name, self.noise)
        for field in ("x_train", "y_train", "x_test", "y_test"):
            self._check_tensor(field)
        self._check_agreement("train", self.x_train, self.y_train)
        self._check_agreement("test", self.x_test, self.y_test)
        for train, test, what in ((self.x_train, self.x_test, "x"), (self.y_train, self.y_test, "y")):
            if train.shape[1:] != test.shape[1:]:
                raise ValueError(
                    f"{what}_train and {what}_test of task '{self.name}' must agree after the first axis, "
                    f"got {list(train.shape)} and {list(test.shape)}."
                )

    def _check_tensor(self, field: str) -> None:
        tensor = getattr(self, field)
        axes = "2 axes [n, c]" if field.startswith("y") else "at least 2 axes [n, *shape]"
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{field} of task '{self.name}' must be a tensor of float32 or float64, got {got}.")
        if tensor.dtype != self.x_train.dtype or tensor.device != self.x_train.device:
            raise ValueError(
                f"{field} of task '{self.name}' must have the dtype and device of x_train "
                f"({self.x_train.dtype}, {self.x_train.device}), got {tensor.dtype}, {tensor.device}."
            )
        if tensor.ndim < 2 or (field.startswith("y") and tensor.ndim != 2):
            raise ValueError(f"{field} of task '{self.name}' must have {axes}, got shape {list(tensor.shape)}.")
        if tensor.numel() == 0:
            raise ValueError(f"{field} of task '{self.name}' must not be empty, got shape {list(tensor.shape)}.")
        if tensor.is_meta:  # holds no values to look at
            return
        if tensor.isnan().any():
            raise ValueError(f"NaN in {field} of task '{self.name}'.")
        if tensor.isinf().any():
            raise ValueError(f"Infinity in {field} of task '{self.name}'.")

    def _check_agreement(self, split: str, x: Tensor, y: Tensor) -> None:
        if len(x) != len(y):
            raise ValueError(
                f"x_{split} and y_{split} of task '{self.name}' must have as many rows, got {len(x)} and {len(y)}."
            )

    @property
    def n_train(self) -> int:
        """Number of training points."""
        return len(self.x_train)

    @property
    def n_test(self) -> int:
        """Number of test points."""
        return len(self.x_test)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the axis of the points."""
        return tuple(self.x_train.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of outputs c."""
        return self.y_train.shape[1]

    def to(self, device: str | torch.device) -> Task:
        """The same task with its four tensors on ``device``."""
        return dataclasses.replace(
            self,
            x_train=self.x_train.to(device),
            y_train=self.y_train.to(device),
            x_test=self.x_test.to(device),
            y_test=self.y_test.to(device),
        )


def with_label_noise(task: Task, noise: float, generator: torch.Generator) -> Task:
    """The task with Gaussian noise of variance ``noise`` added to its training labels; the test labels stay clean.

    Noise 0 draws nothing. The task's own ``noise`` grows by the variance that was added.

    Raises:
        ValueError: ``noise`` is negative or not finite.
    """
    _check_noise(task.name, noise)
    if noise == 0:
        return task
    drawn = torch.randn(task.y_train.shape, generator=generator, dtype=task.y_train.dtype)
    return dataclasses.replace(task, y_train=task.y_train + math.sqrt(noise) * drawn, noise=task.noise + noise)


def _check_noise(name: str, noise: object) -> None:
    number = isinstance(noise, int | float) and not isinstance(noise, bool)
    if not number or not (math.isfinite(noise) and noise >= 0):  # type: ignore[arg-type, operator]
        raise ValueError(f"noise of task '{name}' must be a variance, finite and >= 0, got {noise!r}.")
