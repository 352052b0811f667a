"""``Trainer``: finite networks by gradient descent, each recorded before, during and after training."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.agreement import check_draws, check_fit
from bench.anchor import minimise
from bench.batch import Batch
from bench.checks import check_count, check_flag, check_number, check_richness, check_step
from bench.descent import Rule, descend
from bench.engines import METHODS
from bench.grouping import Cost, groups
from bench.ledger import SCHEDULES, Course
from bench.losses import LOSSES, loss_of
from bench.matmul import stages
from bench.moment import Watch
from bench.networks import change, collect, initialised, outputs, weight_layers, width_of
from bench.savepoint import Savepoint
from bench.trained import History, Member, Richness, Trained, join, label_set
from models.blocks import out_of_memory
from tasks.task import Task

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float64": torch.float64}
OPTIMISERS = ("gd", "sgd", "adam", "lbfgs")


@dataclass(frozen=True)
class Trainer:
    """Gradient descent on ``L + lambda/2 |theta|^2`` of the centred, scaled network ``f = (z - z_0) / gamma``.

    Attributes:
        richness: "ntk" is gamma = 1; a number is gamma = richness sqrt(width) (muP, mean field), independent of width.
            The flow is ``theta' = -gamma^2 (grad L + lambda theta)``, so ``df/dt = -(1/N) K r`` with K the NTK of z.
        loss: "mse" is ``1/(2N) sum r^2``, "logistic" the mean of ``log(1 + exp(-y f))`` for labels +1 and -1,
            "softmax" the cross-entropy of several classes.
        weight_decay: lambda. For a homogeneous network the exact ridge of the after-kernel is gamma^2 N L lambda.
        centred: False: ``f = z / gamma``.
        optimiser: "gd", full-batch gradient descent; "sgd", with mini-batches of ``batch_size`` in an order that the
            member's seed decides; "adam", with or without mini-batches, at a given ``rate``, which is multiplied by
            1/sqrt(fan_in) for hidden-to-hidden layers; "lbfgs", to a stationary point in float64: the exactness anchor.
        momentum: of the heavy ball, below 1, for "gd" and "sgd"; the sum of steps is then no time of a gradient flow.
        batch_size: points a step; None: all. With mini-batches everything is looked at once an epoch only.
        step: c of the step size ``eta = c / lambda_max(K_t / N)``; 2 is the edge of stability (4/3 with acceleration).
        constant: the step size stays ``c / lambda_max(K_0 / N)`` and no step is taken back: for what happens beyond the
            edge of stability.
        rate: a constant step size itself, instead of ``step``.
        accelerated: Nesterov's momentum with restarts, for kernels so badly conditioned that plain descent would need
            10^5 steps (global average pooling); the sum of steps is then no time of a gradient flow.
        tolerance: relative train loss (L over that of zero outputs; for "mse" the relative train MSE) at which a member
            is done; 0: it is never done by its loss.
        time: sum of steps at which a member is done; the last step is shortened to meet it. None: no such end.
        gradient: norm of the objective's gradient at which a member is done, relative to ``lambda |theta|`` with weight
            decay, else to the norm at the start; 0: not looked at.
        max_steps: after which a member that is not done is "unconverged"; where no end is set, the number of steps.
        snapshots: how many points of training keep their parameters, first and last included, for the schedule "time".
        schedule: "time": at log-spaced times; "loss": the first point at or below each of ``levels``, besides the first
            and the last; "dense": every point, for the path-kernel identity.
        levels: relative train losses, falling.
        sharpness: ask for lambda_max(K_t / N) before every step, from all training points, for the record.
        readout_only: train the last layer only, where the network is exactly linear: the positive control.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:<index>".
        dtype: "float32" or "float64", of training; kernels and solves are always float64.
        method: how outputs and gradients are computed: "matmul" (fully connected networks, batched by hand), "vmap",
            "loop" (one network at a time), or "auto", whichever of them is the fastest by measurement (bench.engines).

    Raises:
        ValueError: a setting outside its range; one sentence that names it.
    """

    richness: Richness = "ntk"
    loss: str = "mse"
    weight_decay: float = 0.0
    centred: bool = True
    optimiser: str = "gd"
    momentum: float = 0.0
    batch_size: int | None = None
    step: float = 1.5
    constant: bool = False
    rate: float | None = None
    accelerated: bool = False
    tolerance: float = 1e-4
    time: float | None = None
    gradient: float = 0.0
    max_steps: int = 100_000
    snapshots: int = 8
    schedule: str = "time"
    levels: Sequence[float] = ()
    sharpness: bool = False
    readout_only: bool = False
    device: str = "auto"
    dtype: str = "float32"
    method: str = "auto"

    def __post_init__(self) -> None:
        for name in ("centred", "constant", "accelerated", "sharpness", "readout_only"):
            check_flag(name, getattr(self, name))
        check_richness(self.richness)
        check_step(self.step, self.constant, self.accelerated)
        for name, choices in (("loss", LOSSES), ("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("dtype", DTYPES),
                              ("method", METHODS)):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"trainer.{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        check_number("tolerance", self.tolerance, "a relative train loss of at least 0 and below 1", 0, 1, True)
        check_number("weight_decay", self.weight_decay, "a number of at least 0", 0, math.inf, True)
        check_number("gradient", self.gradient, "a relative norm of at least 0 and below 1", 0, 1, True)
        for name in ("time", "rate"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), "a positive number or null", 0, math.inf)
        check_count("max_steps", self.max_steps, 1)
        check_count("snapshots", self.snapshots, 2)
        levels = tuple(float(level) for level in self.levels)
        object.__setattr__(self, "levels", levels)  # a list of settings would not be plain data
        if (self.schedule == "loss") != bool(levels) or list(levels) != sorted(levels, reverse=True):
            raise ValueError("trainer.levels must be falling losses with trainer.schedule=loss, and empty without.")
        self._check_optimiser()
        self.torch_device()

    def _check_optimiser(self) -> None:
        check_number("momentum", self.momentum, "a number from 0 to below 1", 0, 1, True)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size, 1)
        name = f"trainer.optimiser={self.optimiser}"
        if (self.optimiser == "sgd") > (self.batch_size is not None):
            raise ValueError(f"{name} needs trainer.batch_size: without it, that is gd.")
        if self.batch_size is not None and self.optimiser not in ("sgd", "adam"):
            raise ValueError(f"trainer.batch_size is of sgd and adam, and {name} takes all points at once.")
        if self.momentum and (self.optimiser not in ("gd", "sgd") or self.accelerated):
            raise ValueError(f"trainer.momentum is of gd and sgd without trainer.accelerated, not of {name}.")
        if self.accelerated and self.optimiser != "gd":
            raise ValueError(f"trainer.accelerated is of gd, not of {name}.")
        if self.optimiser == "adam" and self.rate is None:
            raise ValueError(f"{name} needs trainer.rate: it has no edge of stability to step by.")
        if self.optimiser == "lbfgs" and not (self.dtype == "float64" and self.gradient and self.weight_decay):
            raise ValueError(
                f"{name} needs trainer.dtype=float64, trainer.gradient and trainer.weight_decay above 0: it seeks a "
                "stationary point."
            )

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
            ValueError: tasks that are no list of tasks of one shape, or too few for the members; a model that does not
                fit them, that does not use a parameter of its own, that this richness has no meaning for, or that
                cannot be re-initialised.
        """
        return join(list(self.parts(model, tasks, members, progress)))

    def parts(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        members: Sequence[Member],
        progress: Callable[[float], None] | None = None,
        savepoint: Callable[[Sequence[Member]], Savepoint] | None = None,
        watch: Callable[[Sequence[Member]], Watch] | None = None,
        batches: Sequence[Sequence[Member]] | None = None,
    ) -> Iterator[Trained]:
        """As ``fit``, but each batch of members as soon as it is trained; a batch that memory cannot hold is halved.

        Args:
            savepoint: for a batch, where its training goes on from, and keeps its state.
            watch: for a batch, who watches its training.
            batches: the members by those that train together; None: ``batches``, by the memory that is free now.

        Raises:
            ValueError: as ``fit``.
            Interrupted: the process was asked to end, and the state is in the savepoint.
        """
        self.check(model, members, tasks)
        waiting = [list(batch) for batch in (self.batches(model, tasks, members) if batches is None else batches)]
        done, warned = 0, False
        while waiting:
            batch = waiting.pop(0)
            share = part_of(progress, done, len(batch), len(members))
            try:
                seen = watch(batch) if watch else None
                part = self._fit(model, tasks, batch, share, savepoint(batch) if savepoint else None, seen)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                if not warned:
                    log.warning("Out of memory with %d networks at once: going on with half.", len(batch))
                warned = True
                half = math.ceil(len(batch) / 2)
                waiting = [part for one in [batch, *waiting] for part in (one[:half], one[half:]) if part]
                continue
            done += len(batch)
            yield part

    def batches(self, model: nn.Module, tasks: Sequence[Task], members: Sequence[Member]) -> list[list[Member]]:
        """The members that are trained together: as many as memory holds, or one at a time where that is faster."""
        steps = 0 if self.tolerance or self.time or self.gradient else self.max_steps
        cost = Cost.of(model, tasks[0], DTYPES[self.dtype].itemsize, self.kept(steps))
        return groups(members, cost, self.torch_device(), self.method)

    def kept(self, steps: int) -> int:
        """Copies of its parameters that a member keeps which takes so many steps: with the schedule "time" all
        candidates, until it has chosen among them; with "dense" no less than that where the steps are not known (0)."""
        if self.schedule == "loss":
            return len(self.levels) + 2
        return max(steps + 1, 3 * self.snapshots) if self.schedule == "dense" else 3 * self.snapshots

    def check(self, model: nn.Module, members: Sequence[Member] = (), tasks: Sequence[Task] | None = None) -> None:
        """Raises: ValueError where ``fit`` would; nothing is trained. ``tasks`` None: neither they nor the members'
        draws are looked at."""
        if tasks is not None:
            check_draws(tasks, members)
        layers = weight_layers(model)
        if not layers:
            raise ValueError("The model has no layer with weights: nothing can be trained.")
        if self.method == "matmul" and stages(model) is None:
            raise ValueError(
                "trainer.method=matmul is of fully connected networks (a Sequential of linear layers and elementwise "
                "activations), and this model is none: use trainer.method=auto, vmap or loop."
            )
        for member in members:
            if member.step is not None:
                if self.optimiser == "adam":
                    raise ValueError("trainer.optimiser=adam steps by a rate: give members a rate, not a step.")
                check_step(member.step, self.constant, self.accelerated)
            if member.rate is not None:
                check_number("rate", member.rate, "a positive number", 0, math.inf)
        for value in {self.richness, *(m.richness for m in members if m.richness is not None)}:
            check_richness(value)
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
        if tasks is not None:
            check_fit(self.network(model), tasks[0], members)

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
        self, model: nn.Module, tasks: Sequence[Task], members: Sequence[Member], progress: Callable[[float], None],
        savepoint: Savepoint | None, watch: Watch | None,
    ) -> Trained:  # fmt: skip
        device, dtype = self.torch_device(), DTYPES[self.dtype]
        net, loss = self.network(model), loss_of(self.loss)
        initial = {
            name: torch.stack(tensors).to(device, dtype)
            for name, tensors in collect(initialised(net, [member.init_seed for member in members])).items()
        }
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        x = torch.stack([tasks[m.data].x_train for m in members]).to(device, dtype)
        z_0 = torch.stack(
            [functional_call(net, {k: v[i] for k, v in initial.items()}, (x[i],)) for i in range(len(members))]
        ).detach()
        labels = [label_set(tasks[m.data], m.target, z_0.shape[2]).y_train for m in members]
        for y in {id(y): y for y in labels}.values():
            loss.check(y)
        gamma = [self.gamma(net, member.richness) for member in members]
        batch = Batch(
            net,
            {name: value.clone() for name, value in initial.items() if name in trained},
            {name: value for name, value in initial.items() if name not in trained},
            x, torch.stack(labels).to(device, dtype), z_0 if self.centred else torch.zeros_like(z_0),
            torch.tensor(gamma, dtype=torch.float64).to(device, dtype), tuple(m.data for m in members),
        )  # fmt: skip
        if self.optimiser == "lbfgs":
            courses = minimise(batch, self.rule(members), progress, savepoint)
        else:
            courses = descend(batch, self.rule(members), progress, savepoint, watch)
        return self._trained(net, tasks, members, initial, courses, gamma)

    def rule(self, members: Sequence[Member]) -> Rule:
        """The trainer's settings as the descent of these members takes them."""
        own = [(self.step if m.step is None else m.step, self.rate if m.step is None else None) for m in members]
        rates = [rate if m.rate is None else m.rate for m, (_, rate) in zip(members, own, strict=True)]
        return Rule(
            loss=loss_of(self.loss),
            step=tuple(step for step, _ in own),
            rate=tuple(math.nan if rate is None else rate for rate in rates),
            constant=self.constant,
            tolerance=self.tolerance,
            time=math.inf if self.time is None else self.time,
            gradient=self.gradient,
            max_steps=self.max_steps,
            counted=not (self.tolerance or self.time or self.gradient),
            weight_decay=self.weight_decay,
            accelerated=self.accelerated,
            momentum=self.momentum,
            adam=self.optimiser == "adam",
            batch_size=self.batch_size,
            orders=tuple(member.order_seed for member in members),
            schedule=self.schedule,
            levels=tuple(self.levels),
            sharpness=self.sharpness,
            method=self.method,
        )

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
        history, params, f_0, f_T = [], [], [], []
        taken = [self._taken(course) for course in courses]
        most = max(len(steps) for steps in taken)
        for i, (member, course) in enumerate(zip(members, courses, strict=True)):
            steps = taken[i] + [taken[i][-1]] * (most - len(taken[i]))
            fixed = {name: value[i] for name, value in initial.items()}
            snapshots = collect([{**fixed, **course.snapshots[step]} for step in steps])
            params.append({name: torch.stack(values) for name, values in snapshots.items()})
            step, momentum, loss, lambda_max = (
                torch.from_numpy(curve) for curve in (course.steps, course.momenta, course.losses, course.lambda_max)
            )
            history.append(History(step, momentum, loss, torch.tensor(steps), lambda_max))
            ends = {name: value[[0, -1]] for name, value in params[-1].items()}
            task = tasks[member.data]
            x = torch.cat([task.x_train, task.x_test])
            moved = change(net, ends, x)[1] / gamma[i]
            f_0.append(torch.zeros_like(moved) if self.centred else outputs(net, ends, x)[0] / gamma[i])
            f_T.append(f_0[-1] + moved)
        return Trained(
            net=net,
            tasks=tuple(tasks),
            members=tuple(members),
            params={name: torch.stack(values) for name, values in collect(params).items()},
            f_0=torch.stack(f_0),
            f_T=torch.stack(f_T),
            gamma=tuple(gamma),
            history=tuple(history),
            status=tuple(course.status for course in courses),
            settings={f.name: getattr(self, f.name) for f in fields(self)},
        )

    def _taken(self, course: Course) -> list[int]:
        """The steps whose snapshots are kept."""
        steps = sorted(course.snapshots)
        if self.schedule == "dense":
            return steps
        if self.schedule == "time":
            return _thin(steps, self.snapshots)
        reached = [[step for step in steps if course.losses[step] <= level] for level in self.levels]
        return [steps[0], *(found[0] if found else steps[-1] for found in reached), steps[-1]]


def part_of(progress: Callable[[float], None] | None, done: int, count: int, total: int) -> Callable[[float], None]:
    """The progress of the next ``count`` of ``total`` members, ``done`` of which are done, as a part of all."""

    def report(share: float) -> None:
        if progress is not None:
            progress((done + share * count) / total)

    return report


def _thin(candidates: list[int], count: int) -> list[int]:
    """``count`` of the candidates, evenly spread, the first and the last among them; repeated where there are fewer."""
    return [candidates[round(i)] for i in np.linspace(0, len(candidates) - 1, count)]
