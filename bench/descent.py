"""Gradient descent of a batch of networks, each with its own data, step size and end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.batch import Batch, lambda_max, lambda_points, largest
from bench.engines import engine
from bench.ledger import Course, Ledger, is_usable
from bench.losses import Loss
from bench.moment import Moment, Watch
from bench.optimisers import Adam, HeavyBall, Nesterov, Optimiser, Plain, adam_factors
from bench.orders import Orders
from bench.point import Point, along
from bench.savepoint import Savepoint, key_of
from models.blocks import free_memory

RISE = 0.1
"""The loss may lie this much above its lowest, relatively, before a step is taken back: a ReLU network that settles on
a kink rises a little at any step size, and one that is stepping too far rises by far more."""
NOISY_RISE = 1.0
"""The same with mini-batches or momentum, whose loss does not fall at every step; there a step once halved stays so."""
SMALLEST_SHRINK = 2.0**-20
ROOM_EVERY = 32
"""Points between two looks at the memory that is free, where every point is kept."""
NEVER = np.iinfo(int).max
PROGRESS_EVERY = 32
"""Iterations between two reports of progress."""


@dataclass(frozen=True)
class Rule:
    """When to step how far, and when to stop (see ``Trainer``).

    ``step``, ``rate``, ``orders`` (seeds of the batch order): one a member; a rate that is nan is
    ``step / lambda_max(K_0 / N)`` where ``constant``, else the steps adapt. ``counted``: reaching ``max_steps`` is the
    goal, not a failure. ``method``: of ``bench.engines``.
    """

    loss: Loss
    step: tuple[float, ...]
    rate: tuple[float, ...]
    constant: bool
    tolerance: float
    time: float
    gradient: float
    max_steps: int
    counted: bool
    weight_decay: float
    accelerated: bool
    momentum: float
    adam: bool
    batch_size: int | None
    orders: tuple[int, ...]
    schedule: str
    levels: tuple[float, ...]
    sharpness: bool
    method: str


def host(values: Tensor) -> np.ndarray:
    """The one place where the descent waits for its device: [k, m] numbers, once an iteration."""
    return values.double().cpu().numpy()


def descend(
    batch: Batch,
    rule: Rule,
    progress: Callable[[float], None] | None = None,
    savepoint: Savepoint | None = None,
    watch: Watch | None = None,
) -> list[Course]:
    """Train every member to the end that the rule names; members that are finished leave the batch.

    A step is ``theta <- theta - eta gamma^2 grad (L + lambda/2 |theta|^2)`` with ``eta = c / lambda_max(K_t / N)``; one
    after which the objective is clearly higher, or not finite, is taken back and halved. Constant steps are not: what
    is not finite has diverged. An accelerated rule goes on by ``k / (k + 3)`` of the last move (Nesterov 1983), k
    counted anew when the loss rises (O'Donoghue and Candes 2015, "Adaptive restart"); then losses, snapshots and the
    end are those of the points where gradients are taken. With mini-batches, losses are looked at, steps taken back and
    ends met once an epoch; the losses written between are the last one known.

    Args:
        progress: told now and then which share of the way to the tolerance (in log loss) is done.
        savepoint: where to go on from, if there is something, and where to write the state.
        watch: shown the batch when it asks for it.

    Returns:
        a course a member, in the order of the batch.

    Raises:
        Interrupted: the process was asked to end, and the state is in the savepoint.
    """
    key = key_of(rule, batch.decisive()) if savepoint else ""
    descent = _Descent(batch, rule)
    if savepoint is not None and (state := savepoint.load(key, batch.x.device)) is not None:
        descent.restore(batch, state)
    for iteration in itertools.count():
        if not len(descent.active):
            break
        if progress is not None and iteration % PROGRESS_EVERY == 0:
            progress(descent.share())
        if savepoint is not None:
            savepoint.look(key, descent.state)
        if watch is not None and watch.due(iteration):
            watch.look(descent.moment())
        descent.iterate()
    return [descent.ledger.course(member) for member in range(len(batch.data))]


class _Descent:
    """The batch while it shrinks; rows of its tensors are the active members."""

    def __init__(self, batch: Batch, rule: Rule) -> None:
        self.rule = rule
        count = len(batch.data)
        self.active = np.arange(count)
        self.ledger = Ledger(count)
        self.step_c, self.rate = np.array(rule.step), np.array(rule.rate)
        self.constant = rule.constant | ~np.isnan(self.rate)
        if not rule.sharpness:
            self.ledger.due[~np.isnan(self.rate)] = NEVER
        self.optimiser = _optimiser(batch, rule)
        self.orders = Orders(rule.orders, rule.batch_size) if rule.batch_size else None
        self.noisy = bool(rule.momentum or rule.batch_size)
        self.stride = 1 if rule.batch_size is None else -(-batch.x.shape[1] // rule.batch_size)
        self.load(batch)
        self.lambda_max = batch.gamma.new_full((count,), math.nan)

    def load(self, batch: Batch) -> None:
        """Stand at the batch's parameters, with room for the point before (``other``: the batch there) and for the
        gradient."""
        self.here = Point.of(batch.params)
        self.previous, self.gradient = self.here.like(), self.here.like()
        self.batch, self.other = (replace(batch, params=dict(point.views)) for point in (self.here, self.previous))
        self.previous_state = [tensor.clone() for tensor in self.optimiser.state]
        self.scale = self.rule.loss.value(torch.zeros_like(batch.y), batch.y)
        self.engine = engine(self.batch, self.rule.method)

    def keep(self, finished: np.ndarray) -> None:
        """Go on without the rows that are finished."""
        rows = np.flatnonzero(~finished).tolist()
        self.active = self.active[rows]
        if rows:
            self.lambda_max = self.lambda_max[rows]
            self.optimiser.state = [tensor[rows] for tensor in self.optimiser.state]
            self.load(self.batch.keep(rows))

    def state(self) -> dict[str, Any]:
        """All that the next iteration depends on, as tensors, lists and dicts."""
        return {
            "ledger": self.ledger.state(),
            "active": self.active.tolist(),
            "rate": self.rate.tolist(),
            "params": self.here.flat,
            "previous": self.previous.flat,
            "optimiser": self.optimiser.state,
            "previous_state": self.previous_state,
            "lambda_max": self.lambda_max,
            "orders": self.orders.state() if self.orders else [],
        }

    def restore(self, batch: Batch, state: Mapping[str, Any]) -> None:
        """Go on from such a state of the descent that began with ``batch``."""
        self.ledger.restore(state["ledger"])
        self.active, self.rate = np.array(state["active"], int), np.array(state["rate"])
        self.optimiser.state = state["optimiser"]
        if len(self.active):
            self.load(batch.keep(self.active.tolist()))
            self.here.flat.copy_(state["params"])
            self.previous.flat.copy_(state["previous"])
        self.previous_state = state["previous_state"]
        self.lambda_max = state["lambda_max"]
        if self.orders:
            self.orders.restore(state["orders"])

    def moment(self) -> Moment:
        active, ledger = self.active, self.ledger
        counts = ledger.count[active]
        before = np.maximum(counts - self.stride, 0)  # the last point whose loss is known
        steps = [ledger.curves["step"][member, :count].copy() for member, count in zip(active, counts, strict=True)]
        momenta = [ledger.curves["momentum"][m, :count].copy() for m, count in zip(active, counts, strict=True)]
        return Moment(
            active.tolist(),
            {name: parameter.detach() for name, parameter in self.batch.params.items()},
            steps,
            momenta,
            ledger.curves["loss"][active, before],
            np.array([taken[:count].sum() for taken, count in zip(steps, before, strict=True)]),
        )

    def iterate(self) -> None:
        """One forward pass, one host read, and a step (or its withdrawal)."""
        active, ledger, rule = self.active, self.ledger, self.rule
        refreshed = self.refresh()
        f = self.batch.outputs(self.engine.forward(self.batch, self.here))
        columns = [rule.loss.value(f, self.batch.y) / self.scale, self.lambda_max]
        squares = self.here.squares() if rule.weight_decay else None
        if squares is not None:
            columns.append(rule.weight_decay / 2 * squares / self.scale)
        if rule.gradient:
            self.find_gradient(self.batch, f, self.here, torch.ones_like(self.batch.gamma))
            pull = 1.0 if squares is None else rule.weight_decay * squares.sqrt()
            columns.append(self.gradient.squares().sqrt() / pull)
        numbers = np.array(host(torch.stack(columns)))
        losses, lambdas = numbers[0], numbers[1]
        objective = losses + numbers[2] if rule.weight_decay else losses
        worse = self.worse(objective, refreshed & ~is_usable(lambdas))
        noted = refreshed & ~worse  # what a point says that is taken back counts for nothing
        if noted.any():
            ledger.schedule(active[noted], lambdas[noted], rule.sharpness, recover=not self.noisy)
        if worse.any():
            self.take_back(worse)
            return
        self.note(losses, objective)
        finished = self.finished(losses, numbers[-1] if rule.gradient else None)
        self.snapshots(losses, finished)
        ledger.fresh[active] = False
        if finished.any():
            self.keep(finished)
        else:
            self.step(f)

    def worse(self, objective: np.ndarray, unusable: np.ndarray) -> np.ndarray:
        """The rows whose last step must not stand."""
        active, ledger = self.active, self.ledger
        rise = NOISY_RISE if self.noisy else RISE
        rose = ledger.fresh[active] & (objective > ledger.lowest[active] * (1 + rise)) & ~self.constant[active]
        return ~np.isfinite(objective) | unusable | rose

    def note(self, losses: np.ndarray, objective: np.ndarray) -> None:
        """Write down what is new of each row, the present point's loss."""
        ledger = self.ledger
        fresh = ledger.fresh[self.active]
        members, losses, objective = self.active[fresh], losses[fresh], objective[fresh]
        if not len(members):
            return
        before = ledger.curves["loss"][members, np.maximum(ledger.count[members] - 1, 0)]
        ledger.run[members[losses > before]] = 0
        ledger.write(members, loss=losses)
        ledger.lowest[members] = np.minimum(ledger.lowest[members], objective)

    def finished(self, losses: np.ndarray, gradient: np.ndarray | None) -> np.ndarray:
        """The rows that have reached an end, which is then their status."""
        active, ledger, rule = self.active, self.ledger, self.rule
        done = (losses <= rule.tolerance) | (ledger.time[active] >= rule.time * (1 - 1e-12))
        if gradient is not None:
            starts = active[ledger.count[active] == 0]
            ledger.first_gradient[starts] = 1.0 if rule.weight_decay else gradient[ledger.count[active] == 0]
            done |= gradient <= rule.gradient * ledger.first_gradient[active]
        spent = ledger.count[active] >= rule.max_steps
        for member in active[done | (spent & rule.counted)]:
            ledger.status[member] = "done"
        return done | spent

    def snapshots(self, losses: np.ndarray, finished: np.ndarray) -> None:
        active, ledger = self.active, self.ledger
        rows = np.flatnonzero(ledger.fresh[active])
        start = self.second_snapshots() if not ledger.count[active].all() else np.full(len(active), np.nan)
        due = ledger.snapshot_due(active[rows], losses[rows], self.rule.schedule, self.rule.levels, start[rows])
        if due.any() or finished.any():
            for row in np.union1d(rows[due], np.flatnonzero(finished)).tolist():
                self.keep_point(row)

    def second_snapshots(self) -> np.ndarray:
        """Of every row: the time 1 / lambda_max, that of one constant step where it is not known."""
        rates = np.where(self.constant[self.active], self.rate[self.active], np.nan)
        lambdas = self.ledger.lambda_max[self.active]
        start = np.where(is_usable(lambdas), 1 / np.where(is_usable(lambdas), lambdas, 1.0), rates)
        return np.where(np.isnan(start), np.inf, start)

    def keep_point(self, row: int) -> None:
        member = self.active[row]
        if self.rule.schedule == "dense" and self.ledger.count[member] % ROOM_EVERY == ROOM_EVERY - 1:
            self.check_room()
        self.ledger.snapshots[member][int(self.ledger.count[member])] = {
            name: parameter[row].detach().clone() for name, parameter in self.batch.params.items()
        }

    def check_room(self) -> None:
        """Raises: MemoryError, before the system ends the process: the next points do not fit."""
        free = free_memory(self.here.flat.device)
        if free < 2 * ROOM_EVERY * self.here.flat.nbytes:
            steps = int(self.ledger.count.max())
            raise MemoryError(
                f"trainer.schedule=dense keeps every point, and {len(self.ledger.count)} networks at once fill the "
                f"memory after {steps} steps ({free / 1e9:.2g} GB are free): use fewer steps or trainer.schedule=time."
            )

    def rates(self) -> np.ndarray:
        """The step size of every row, now."""
        active, ledger = self.active, self.ledger
        adaptive = self.step_c[active] * ledger.shrink[active] / ledger.lambda_max[active]
        fixed = np.isnan(self.rate[active]) & self.constant[active]
        self.rate[active[fixed]] = adaptive[fixed]
        etas = np.where(self.constant[active], self.rate[active], adaptive)
        return np.minimum(etas, (self.rule.time - ledger.time[active]) / self.stride)

    def find_gradient(self, batch: Batch, f: Tensor, point: Point, weights: Tensor) -> None:
        """Of every member's weight times ``L + lambda/2 |theta|^2``, in its parameters at the point of f."""
        scale = (weights / (batch.gamma * f.shape[1]))[:, None, None]
        self.engine.backward(scale * self.rule.loss.gradient(f, batch.y), self.gradient)
        if self.rule.weight_decay:
            for gradient, parameter in zip(self.gradient.tensors, point.tensors, strict=True):
                gradient.addcmul_(parameter, along(self.rule.weight_decay * weights, parameter))

    def step(self, f: Tensor) -> None:
        """One step from here, or an epoch of them."""
        active, ledger = self.active, self.ledger
        etas = self.rates()
        momenta = ledger.run[active] / (ledger.run[active] + 3) if self.rule.accelerated else np.zeros(len(active))
        rates, shares = (torch.from_numpy(values).to(self.batch.gamma) for values in (etas, momenta))
        weights = self.optimiser.weight(self.batch.gamma, rates)
        if self.optimiser.state:
            torch._foreach_copy_(self.previous_state, self.optimiser.state)
        start, end = self.here, self.previous
        if self.orders:
            for part in self.orders.epoch(self.batch, active.tolist()):
                f = part.outputs(self.engine.forward(part, start))
                self.find_gradient(part, f, start, weights)
                self.optimiser.move(start, end, self.gradient, rates, shares)
                start = end
        else:
            if self.rule.gradient:
                self.gradient.scale(weights)
            else:
                self.find_gradient(self.batch, f, start, weights)
            self.optimiser.move(start, end, self.gradient, rates, shares)
        self.previous, self.here = self.here, self.previous
        self.batch, self.other = self.other, self.batch
        self.count(etas, momenta)

    def count(self, etas: np.ndarray, momenta: np.ndarray) -> None:
        """Write down the steps that were just taken."""
        active, ledger = self.active, self.ledger
        losses = ledger.curves["loss"][active, ledger.count[active]]
        for _ in range(self.stride):
            ledger.write(active, step=etas, momentum=momenta, lambda_max=ledger.lambda_max[active])
            ledger.count[active] += 1
            ledger.time[active] += etas
            if self.stride > 1:
                ledger.write(active, loss=losses)
        ledger.run[active] += 1
        ledger.fresh[active] = True

    def take_back(self, worse: np.ndarray) -> None:
        """Undo the last step of these rows, and halve their next one; those that cannot go on have diverged."""
        active, ledger = self.active, self.ledger
        diverged = np.zeros(len(active), bool)
        for row in np.flatnonzero(worse).tolist():
            member = active[row]
            for parameter, before in zip(self.here.tensors, self.previous.tensors, strict=True):
                parameter[row] = before[row]
            for state, before in zip(self.optimiser.state, self.previous_state, strict=True):
                state[row] = before[row]
            if ledger.count[member]:
                ledger.count[member] -= self.stride
                taken = ledger.curves["step"][member, ledger.count[member]]
                ledger.time[member] -= self.stride * taken
            ledger.run[member] = 0
            ledger.shrink[member] /= 2
            ledger.backtracked[member], ledger.fresh[member] = True, False
            ledger.due[member], ledger.interval[member] = ledger.count[member], 1
            unseen = not math.isfinite(ledger.lowest[member])
            if unseen or self.constant[member] or ledger.shrink[member] < SMALLEST_SHRINK:
                ledger.status[member] = "diverged"
                self.keep_point(row)
                diverged[row] = True
        if diverged.any():
            self.keep(diverged)

    def refresh(self) -> np.ndarray:
        """Recompute lambda_max of the rows for which it is due; returns which."""
        active, ledger = self.active, self.ledger
        due = ledger.count[active] >= ledger.due[active]
        if not due.any():
            return due
        due &= ~self.constant[active] | (ledger.count[active] == 0) | self.rule.sharpness
        rows = np.flatnonzero(due).tolist()
        whole = self.rule.constant or self.rule.sharpness
        points = lambda_points(self.batch, whole)
        own = self.engine.kernel(self.batch, self.here, points) if rows and not self.rule.loss.curved else None
        if own is not None:
            self.lambda_max[rows] = largest(own[rows]) / points
            return due
        for data in sorted({self.batch.data[row] for row in rows}):
            alike = [row for row in rows if self.batch.data[row] == data]
            self.lambda_max[alike] = lambda_max(self.batch.keep(alike), self.rule.loss, whole)
        return due

    def share(self) -> float:
        """How much of their way the members have gone, on average: in log loss, or in time or steps if that is more."""
        ledger, rule = self.ledger, self.rule
        ended = np.isin(np.arange(ledger.members), self.active, invert=True)
        share = np.maximum(ledger.count / rule.max_steps, ledger.time / rule.time)
        if rule.tolerance:
            lowest = np.clip(ledger.lowest, rule.tolerance, 1.0)
            share = np.maximum(share, np.log(lowest) / math.log(rule.tolerance))
        return float(np.where(ended, 1.0, share).mean())


def _optimiser(batch: Batch, rule: Rule) -> Optimiser:
    params = list(batch.params.values())
    if rule.adam:
        return Adam(params, adam_factors(batch.net, list(batch.params)))
    if rule.accelerated:
        return Nesterov(params)
    return HeavyBall(params, rule.momentum) if rule.momentum else Plain()
