"""``Trainer``: finite networks by full-batch gradient descent, each recorded before, during and after training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.descent import Batch, Course, Rule, descend
from bench.trained import History, Member, Richness, Trained, join, seed_of
from tasks.task import Task

CACHE = 2**19
"""Bytes of one member's activations above which a CPU trains members one after another: batching only pays where a
step is so short that calling it costs more than doing it."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Trainer:
    """Full-batch gradient descent on ``L = 1/(2N) sum r^2`` of the centred, scaled network ``f = (z - z_0) / gamma``.

    Attributes:
        richness: "ntk" is gamma = 1; a number is gamma = richness sqrt(width) (muP, mean field), independent of width.
            The flow is ``theta' = -gamma^2 grad L``, so ``df/dt = -(1/N) K r`` with K the NTK of z.
        step: c of the step size ``eta = c / lambda_max(K_t / N)``; 2 is the edge of stability (4/3 with acceleration).
        accelerated: Nesterov's momentum with restarts, for kernels so badly conditioned that plain descent would need
            10^5 steps (global average pooling); the sum of steps is then no time of a gradient flow.
        tolerance: relative train MSE at which a member is done.
        max_steps: after which a member that is not done is "unconverged".
        snapshots: how many points of training keep their parameters, at log-spaced times, first and last included.
        readout_only: train the last layer only, where the network is exactly linear: the positive control.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:<index>".
        dtype: "float32" or "float64", of training; kernels and solves are always float64.

    Raises:
        ValueError: a setting outside its range; one sentence that names it.
    """

    richness: Richness = "ntk"
    step: float = 1.5
    accelerated: bool = False
    tolerance: float = 1e-4
    max_steps: int = 100_000
    snapshots: int = 8
    readout_only: bool = False
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_richness(self.richness)
        if not 0 < self.step < 4:
            raise ValueError(f"trainer.step must lie between 0 and 4 (2 is the edge of stability), not {self.step}.")
        if self.accelerated and self.step > 4 / 3:
            raise ValueError(f"trainer.step must be at most 4/3 with trainer.accelerated=true, not {self.step}.")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"trainer.tolerance is a relative train MSE between 0 and 1, not {self.tolerance}.")
        for name, least in (("max_steps", 1), ("snapshots", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"trainer.{name} must be a whole number of at least {least}, not {value!r}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"trainer.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        self.torch_device()

    def fit(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        members: Sequence[Member],
        progress: Callable[[float], None] | None = None,
    ) -> Trained:
        """Train every member: ``model`` re-initialised by the member's seed, on the data draw that it names.

        Args:
            model: the architecture. Its values are not used, and it is not changed: every module that holds parameters
                needs torch's usual ``reset_parameters()``.
            tasks: one a data draw, all of one shape.
            progress: told now and then which share of the training is done.

        Raises:
            ValueError: a model that this richness has no meaning for, or that cannot be re-initialised.
        """
        self.check(model, [member.richness for member in members])
        parts, done = [], 0
        for batch in self.batches(model, tasks, members):
            parts.append(self._fit(model, tasks, batch, part_of(progress, done, len(batch), len(members))))
            done += len(batch)
        return join(parts)

    def batches(self, model: nn.Module, tasks: Sequence[Task], members: Sequence[Member]) -> list[list[Member]]:
        """The members that are trained together: all of them, or one at a time where that is faster."""
        if self.torch_device().type == "cpu":
            widest = max((_fan_out(layer) for layer in weight_layers(model)), default=1)
            convolves = any(getattr(layer, "weight").ndim > 2 for layer in weight_layers(model))  # noqa: B009
            if convolves or tasks[0].n_train * widest * DTYPES[self.dtype].itemsize > CACHE:
                return [[member] for member in members]
        return [list(members)]

    def check(self, model: nn.Module, richness: Sequence[Richness | None] = ()) -> None:
        """Raises: ValueError where ``fit`` would; nothing is trained."""
        layers = weight_layers(model)
        if not layers:
            raise ValueError("The model has no layer with weights: nothing can be trained.")
        for value in {self.richness, *(r for r in richness if r is not None)}:
            _check_richness(value)
            if value == "ntk":
                continue
            width_of(model)
            for layer in layers:
                if getattr(layer, "parameterization", "standard") != "ntk":
                    raise ValueError(
                        f"trainer.richness={value} needs layers in ntk parameterization, and {type(layer).__name__} is "
                        "in standard parameterization (its first layer hardly trains): use "
                        "model.parameterization=ntk or trainer.richness=ntk."
                    )
        for name, module in model.named_modules():
            if list(module.parameters(recurse=False)) and not hasattr(module, "reset_parameters"):
                raise ValueError(
                    f"{name or type(model).__name__} holds parameters but has no reset_parameters(): "
                    "a member could not be initialised by its seed."
                )

    def gamma(self, model: nn.Module, richness: Richness | None = None) -> float:
        """The scale of the output, at the trainer's richness or another."""
        value = self.richness if richness is None else richness
        return 1.0 if isinstance(value, str) else value * width_of(model) ** 0.5

    def torch_device(self) -> torch.device:
        """Raises: ValueError where the device does not exist here."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise ValueError(f"trainer.device must be auto, cpu, cuda or cuda:<index>, not {self.device!r}.")
        if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
            raise ValueError(
                f"trainer.device={self.device} is asked for, but torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} CUDA devices here: use trainer.device=auto or cpu."
            )
        return device

    def _fit(
        self, model: nn.Module, tasks: Sequence[Task], members: Sequence[Member], progress: Callable[[float], None]
    ) -> Trained:
        device, dtype = self.torch_device(), DTYPES[self.dtype]
        net = self.network(model)
        initial = {
            name: torch.stack(tensors).to(device, dtype)
            for name, tensors in _collect([_initialised(net, seed_of("init", m.data, m.init)) for m in members]).items()
        }
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        x = torch.stack([tasks[m.data].x_train for m in members]).to(device, dtype)
        y = torch.stack([tasks[m.data].y_train for m in members]).to(device, dtype)
        z_0 = torch.stack(
            [functional_call(net, {k: v[i] for k, v in initial.items()}, (x[i],)) for i in range(len(members))]
        ).detach()
        gamma = [self.gamma(net, member.richness) for member in members]
        batch = Batch(
            net,
            {name: value.clone() for name, value in initial.items() if name in trained},
            {name: value for name, value in initial.items() if name not in trained},
            x, y, z_0, torch.tensor(gamma, dtype=torch.float64).to(y), tuple(m.data for m in members),
        )  # fmt: skip
        courses = descend(batch, Rule(self.step, self.tolerance, self.max_steps, self.accelerated), progress)
        return self._trained(net, tasks, members, initial, courses, gamma)

    def network(self, model: nn.Module) -> nn.Module:
        """The architecture as it is trained: with only its read-out trainable where ``readout_only``."""
        net = copy.deepcopy(model).to(dtype=DTYPES[self.dtype])
        if self.readout_only:
            net.requires_grad_(False)
            weight_layers(net)[-1].requires_grad_(True)
        return net

    def _trained(
        self, net: nn.Module, tasks: Sequence[Task], members: Sequence[Member], initial: dict[str, Tensor],
        courses: list[Course], gamma: list[float],
    ) -> Trained:  # fmt: skip
        history, params, f_T = [], [], []
        for i, (member, course) in enumerate(zip(members, courses, strict=True)):
            taken = _thin(sorted(course.snapshots), self.snapshots)
            fixed = {name: value[i] for name, value in initial.items()}
            snapshots = _collect([{**fixed, **course.snapshots[step]} for step in taken])
            params.append({name: torch.stack(values) for name, values in snapshots.items()})
            steps, momenta, losses = (
                torch.tensor(values, dtype=torch.float64) for values in (course.steps, course.momenta, course.losses)
            )
            history.append(History(steps, momenta, losses, torch.tensor(taken)))
            ends = {name: value[[0, -1]] for name, value in params[-1].items()}
            task = tasks[member.data]
            f_T.append(change(net, ends, torch.cat([task.x_train, task.x_test]))[1] / gamma[i])
        outputs = torch.stack(f_T)
        return Trained(
            net=net,
            tasks=tuple(tasks),
            members=tuple(members),
            params={name: torch.stack(values) for name, values in _collect(params).items()},
            f_0=torch.zeros_like(outputs),
            f_T=outputs,
            gamma=tuple(gamma),
            history=tuple(history),
            status=tuple(course.status for course in courses),
            settings={f.name: getattr(self, f.name) for f in fields(self)},
        )


def part_of(progress: Callable[[float], None] | None, done: int, count: int, total: int) -> Callable[[float], None]:
    """The progress of the next ``count`` of ``total`` members, ``done`` of which are done, as a part of all."""

    def report(share: float) -> None:
        if progress is not None:
            progress((done + share * count) / total)

    return report


def change(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """z at every snapshot minus z at the first, [S, n, c], in float64.

    Args:
        params: one member's, each [S, ...].
        x: [n, *shape].
    """
    double = copy.deepcopy(net).double()  # its buffers, too
    first = next(iter(params.values()))
    x = x.to(first.device, torch.float64)
    z = [
        functional_call(double, {name: value[snapshot].double() for name, value in params.items()}, (x,)).detach()
        for snapshot in range(len(first))
    ]
    return torch.stack(z) - z[0]


def weight_layers(net: nn.Module) -> list[nn.Module]:
    """The modules with a weight matrix or convolution kernel of their own, in order; the read-out is the last."""
    return [
        module
        for module in net.modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim >= 2
    ]


def width_of(net: nn.Module) -> int:
    """Hidden units of the last hidden layer (channels of a CNN, never the read-out's fan-in).

    Raises:
        ValueError: no hidden layer.
    """
    layers = weight_layers(net)
    if len(layers) < 2:
        raise ValueError("A richness needs a hidden layer, and this model has none: use trainer.richness=ntk.")
    return _fan_out(layers[-2])


def _fan_out(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _check_richness(value: Any) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "ntk" and not (numeric and np.isfinite(value) and value > 0):
        raise ValueError(f"trainer.richness must be ntk or a positive number, not {value!r}.")


def _initialised(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Fresh parameters, drawn on the CPU so that every device starts from the same ones."""
    fresh = copy.deepcopy(net).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return {name: parameter.detach() for name, parameter in fresh.named_parameters()}


def _collect(dicts: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [d[name] for d in dicts] for name in dicts[0]}


def _thin(candidates: list[int], count: int) -> list[int]:
    """``count`` of the candidates, evenly spread, the first and the last among them; repeated where there are fewer."""
    return [candidates[round(i)] for i in np.linspace(0, len(candidates) - 1, count)]
