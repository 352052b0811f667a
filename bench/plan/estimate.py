"""What a cell will cost, before it runs: the steps of the lazy theory, at the speed of this machine."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import store
from bench.compare import Trajectory
from bench.environment import processor
from bench.ntk import empirical_ntk, explain
from bench.plan.cells import Planned, build
from bench.plan.state import State
from bench.predict import KernelPredictor
from bench.studies.cell import Cell
from bench.train import Trainer
from bench.trained import Member
from models.limits import NoInfiniteWidthLimit, infinite_width
from tasks.task import Task

BUDGET = 0.15
"""Seconds of two steps of one network from which on fewer steps are measured, and of one network only."""
SETTLED = 32
"""Steps until lambda_max is refreshed as rarely as in most of the training."""
ROWS = 1024
"""Points times outputs at most of the kernel whose spectrum gives the number of steps."""
KERNEL_POINTS = 128
LIMIT_POINTS = (16, 128)
SOLVES = 8
"""Kernel regressions a network, all comparisons together, besides one a snapshot."""
PER_CELL = 0.3
"""Seconds of a cell that no part of it explains: its data, its network, its files."""
TRAINED_ONCE = 2**26
"""Bytes that a process takes when it first trains: torch loads its parts then."""


@dataclass(frozen=True)
class Speed:
    """Of one task and network on this machine, in seconds: a step of one network, a kernel of one network, the other
    comparisons of one network. ``source``: "records" (of earlier runs) or "measured" (just now)."""

    step: float
    kernel: float
    comparisons: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """``seconds`` of one process and its ``bytes`` at the most; ``steps`` of training, 0 for a study; ``source`` of the
    speed.

    ``bound``: no theory says how many steps these settings take, and seconds and steps are the most there can be.
    """

    seconds: float
    bytes: float
    steps: int
    source: str
    bound: bool = False


def estimates(cells: Sequence[tuple[Planned, State]], base: float) -> list[Estimate | None]:
    """One for each cell that is not done, None for the others.

    The number of steps is exact for the linearised network (the spectrum of its initial kernel decides it) and a bound
    for most networks that learn features: of the default run's they take all of it where lazy, down to a third where
    rich. The speed comes from records of earlier runs by this processor, below the cell's ``runs``, where the same
    task and network are among them; else from a few steps and small kernels, measured here and now.

    Args:
        base: bytes of a process that has only imported everything.
    """
    speeds: dict[str, Speed] = {}
    found: list[Estimate | None] = []
    for planned, state in cells:
        if state.done or planned.request is not None:
            found.append(None if state.done else _of_study(planned, base))
            continue
        cell = build(planned.config)
        key = _key(cell.settings)
        if key not in speeds:
            speeds[key] = _of_records(Path(planned.config.runs), cell) or _measured(cell)
        found.append(_estimate(cell, state, speeds[key], base))
    return found


def _estimate(cell: Cell, state: State, speed: Speed, base: float) -> Estimate:
    steps = lazy_steps(cell.trainer, *_spectrum(cell)) if _is_lazy_theory(cell.trainer) else cell.trainer.max_steps
    looked = steps + 1 if cell.trainer.schedule == "dense" else cell.trainer.snapshots
    snapshots = looked if any(isinstance(c, Trajectory) for c in cell.comparisons) else 2
    training = (state.members - state.trained) * steps * speed.step
    scoring = state.members * (snapshots * speed.kernel + speed.comparisons)
    seconds = PER_CELL + training + scoring
    return Estimate(seconds, base + _bytes(cell, steps), steps, speed.source, not _is_lazy_theory(cell.trainer))


def _of_study(planned: Planned, base: float) -> Estimate | None:
    """What it took when it last ran, with whatever code; nothing is known before that."""
    try:
        seconds = float(store.read_record(planned.folder).card["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Estimate(seconds, base + TRAINED_ONCE, 0, "records")


def _is_lazy_theory(trainer: Trainer) -> bool:
    """Whether these are settings of plain or accelerated descent of the squared error to a loss."""
    plain = trainer.optimiser == "gd" and trainer.loss == "mse" and trainer.rate is None and not trainer.momentum
    return plain and trainer.tolerance > 0 and trainer.time is None and not (trainer.weight_decay or trainer.gradient)


def lazy_steps(trainer: Trainer, eigenvalues: Tensor, power: Tensor) -> int:
    """Steps of the linearised network to the tolerance: the loss is ``sum_i power_i (1 - eta lambda_i)^(2 k)``.

    Args:
        eigenvalues: of K_0 / N, [n]; eta is ``trainer.step`` over the largest.
        power: squared coefficients of the labels in their eigenvectors, which sum to 1, [n].
    """
    rates = (trainer.step / eigenvalues.max()) * eigenvalues.clamp_min(0)
    if trainer.accelerated:
        return _accelerated_steps(trainer, rates, power)

    def loss(step: int) -> float:
        return float((power * (1 - rates).square() ** step).sum())

    low, high = 0, 1
    while loss(high) > trainer.tolerance:
        low, high = high, 2 * high
        if low >= trainer.max_steps:
            return trainer.max_steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if loss(middle) > trainer.tolerance else (low, middle)
    return min(high, trainer.max_steps)


def _accelerated_steps(trainer: Trainer, rates: Tensor, power: Tensor) -> int:
    """Nesterov's momentum with restarts, mode by mode."""
    reached = before = residual = np.ones(len(power))
    weights, rate = power.numpy(), rates.numpy()
    run, last = 0, np.inf
    for step in range(trainer.max_steps):
        loss = float(weights @ residual**2)
        if loss <= trainer.tolerance:
            return step
        run = 0 if loss > last else run
        last = loss
        before, reached = reached, residual * (1 - rate)
        residual = reached + run / (run + 3) * (reached - before)
        run += 1
    return trainer.max_steps


def _spectrum(cell: Cell) -> tuple[Tensor, Tensor]:
    """Eigenvalues of K_0 / N of the first member, and the power of the labels in their eigenvectors."""
    settings = {name: cell.settings[name] for name in ("task", "model")}
    return _cached_spectrum(json.dumps(settings, sort_keys=True, default=str), _Uncompared(cell))


@dataclass(frozen=True)
class _Uncompared:
    """An argument that a cache does not look at."""

    cell: Cell

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(64)
def _cached_spectrum(key: str, argument: _Uncompared) -> tuple[Tensor, Tensor]:
    cell = argument.cell
    task, member = cell.tasks[0], cell.members[0]
    points = max(1, min(task.n_train, ROWS // task.outputs))
    params = {name: value[:, 0] for name, value in _short(cell, [member], 1).params.items()}
    x, y = task.x_train[:points], task.y_train[:points].reshape(-1).double()
    device = next(iter(params.values())).device
    kernel = empirical_ntk(cell.trainer.network(cell.model), x.to(device), dtype=torch.float64, params=params)
    assert isinstance(kernel, Tensor)
    matrix = kernel[0].permute(0, 2, 1, 3).reshape(len(y), len(y)).cpu()
    values, vectors = torch.linalg.eigh(matrix)
    power = (vectors.T @ y).square()
    return values / points, power / power.sum()


def _short(cell: Cell, members: Sequence[Member], steps: int) -> Any:
    """So many steps of training, whatever the tolerance."""
    return replace(cell.trainer, max_steps=steps, tolerance=1e-30).fit(cell.model, cell.tasks, members)


def _measured(cell: Cell) -> Speed:
    device = cell.trainer.torch_device()
    kernel, limit = _kernel_seconds(cell), _limit_seconds(cell)
    n = cell.tasks[0].n_train * cell.tasks[0].outputs
    small = min(n, 512)
    matrix = torch.eye(small, dtype=torch.float64, device=device)
    labels = matrix[:, :1]
    solve = _seconds(device, lambda: KernelPredictor(matrix).fit(labels).predict(matrix)) * (n / small) ** 3
    snapshots = cell.trainer.snapshots
    comparisons = (SOLVES + snapshots) * solve + limit * len(cell.tasks) / len(cell.members)
    return Speed(_step_seconds(cell), kernel, comparisons, "measured")


def _step_seconds(cell: Cell) -> float:
    """Of one step of one network among all of its cell, its share of the refreshes of lambda_max in it."""
    members, device = cell.members, cell.trainer.torch_device()
    _short(cell, members[:1], 1)  # what only the first call costs
    slow = _seconds(device, lambda: _short(cell, members[:1], 2)) > BUDGET
    if slow:
        members = members[:1]
    few, many = (2, 6) if slow else (SETTLED, 4 * SETTLED)
    start = _seconds(device, lambda: _short(cell, members, few))
    end = _seconds(device, lambda: _short(cell, members, many))
    return max(end - start, 0.1 * end) / (many - few) / len(members)


def _kernel_seconds(cell: Cell) -> float:
    """Of one network's kernel on all points, from one on a few: FLOPs are counted, and their speed is measured."""
    task, device = cell.tasks[0], cell.trainer.torch_device()
    net = cell.trainer.network(cell.model).double().to(device)
    x = torch.cat([task.x_train, task.x_test]).to(device, torch.float64)
    rows, columns = min(len(x), 2 * KERNEL_POINTS), min(task.n_train, KERNEL_POINTS)
    seconds = _seconds(device, lambda: empirical_ntk(net, x[:rows], x[:columns]), warm=True)
    return seconds * explain(net, x, x[: task.n_train]).flops / explain(net, x[:rows], x[:columns]).flops


def _limit_seconds(cell: Cell) -> float:
    """Of one data draw's infinite-width kernel, from a few points; 0 where there is none."""
    task, device = cell.tasks[0], cell.trainer.torch_device()
    seconds = points = 0.0
    try:
        limit = infinite_width(cell.model)
        for points in (min(most, task.n_train) for most in LIMIT_POINTS):
            x = task.x_train[: int(points)].to(device, torch.float64)
            seconds = _seconds(device, functools.partial(limit, x, x), warm=True)
            if seconds > BUDGET / 10:
                break
    except (NoInfiniteWidthLimit, ValueError, RuntimeError):
        return 0.0
    return seconds * (task.n_train + task.n_test) * task.n_train / points**2


def _seconds(device: torch.device, work: Callable[[], Any], warm: bool = False) -> float:
    """CPU seconds (this machine may be busy), or seconds where a GPU works. ``warm``: once before."""
    if warm:
        work()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def _key(settings: Mapping[str, Any]) -> str:
    """Of everything that decides the speed: not the richness, nor when to stop."""
    trainer = {k: v for k, v in settings["trainer"].items() if k not in ("richness", "tolerance", "step", "max_steps")}
    return json.dumps(store.plain([settings["task"], settings["model"], trainer, settings["compare"]]), sort_keys=True)


def _of_records(runs: Path, cell: Cell) -> Speed | None:
    """The mean over earlier runs of the same task and network by this processor that trained all of their networks."""
    found = []
    for folder in sorted(runs.glob(f"{cell.name.rpartition('-')[0]}-*")):
        try:
            if _key(store.read_yaml(folder / "config.yaml")) != _key(cell.settings):
                continue
            card, environment = store.read_record(folder).card, store.read_json(folder / "environment.json")
            members, steps = int(card["members_scored"]), float(card["steps"])
            if not environment["trained_all"] or environment["processor"] != processor() or members != card["members"]:
                continue
            split = environment["split"]
            kernels = split["kernels"] / members / cell.trainer.snapshots
            found.append((split["training"] / steps / members, kernels, split["comparisons"] / members))
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue
    if not found:
        return None
    step, kernel, comparisons = np.mean(found, 0).tolist()
    return Speed(step, kernel, comparisons, "records")


def _bytes(cell: Cell, steps: int) -> float:
    """What the cell adds to a process: snapshots of so many steps, activations, and the kernels that are kept."""
    task: Task = cell.tasks[0]
    members = len(cell.members)
    parameters = sum(parameter.numel() for parameter in cell.model.parameters())
    width = torch.finfo(torch.float64 if cell.trainer.dtype == "float64" else torch.float32).bits // 8
    x = torch.cat([task.x_train, task.x_test])[:8]
    plan = explain(cell.trainer.network(cell.model), x.to(torch.float32))
    snapshots = cell.trainer.kept(steps) * parameters * members * width
    together = cell.trainer.batches(cell.model, cell.tasks, cell.members)
    activations = 3 * plan.activations * task.n_train * max(map(len, together))
    kernel = 8 * (task.n_train + task.n_test) * task.n_train * task.outputs**2
    return TRAINED_ONCE + snapshots + activations + kernel * (2 * members + 4 + 2 * len(cell.tasks))
