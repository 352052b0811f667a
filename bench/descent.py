"""Full-batch gradient descent of a batch of networks, each with its own data, step size and end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.ntk import empirical_ntk

LAMBDA_POINTS = 128
"""Of the training set, for lambda_max: enough for a step size (not for a predictor)."""
LAMBDA_ROWS = 512
"""Points times outputs at most, so that ten classes do not make a step size expensive."""
LONGEST_INTERVAL = 25
"""Steps between two refreshes of lambda_max where it hardly changes; a rich kernel grows 100x in fewer."""
RISE = 0.1
"""The loss may lie this much above its lowest, relatively, before a step is taken back: a ReLU network that settles on
a kink rises a little at any step size, and one that is stepping too far rises by far more."""
SMALLEST_SHRINK = 2.0**-20
PROGRESS_EVERY = 32
"""Iterations between two reports of progress."""


@dataclass(frozen=True)
class Rule:
    """When to step how far, and when to stop (see ``Trainer``)."""

    step: float
    tolerance: float
    max_steps: int
    accelerated: bool = False


@dataclass(frozen=True)
class Batch:
    """Networks that descend together. Leading axis m: the members; c outputs, N training points.

    ``params`` are the trained parameters, ``fixed`` everything else that the network needs; x [m, N, *shape],
    y, z_0 [m, N, c], gamma [m]; ``data`` names each member's training set, so that members share kernel work.
    """

    net: nn.Module
    params: dict[str, Tensor]
    fixed: dict[str, Tensor]
    x: Tensor
    y: Tensor
    z_0: Tensor
    gamma: Tensor
    data: tuple[int, ...]

    def keep(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(list(rows), device=self.x.device)

        def some(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.detach().index_select(0, index) for name, tensor in tensors.items()}

        x, y, z_0, gamma = (tensor.index_select(0, index) for tensor in (self.x, self.y, self.z_0, self.gamma))
        data = tuple(self.data[i] for i in rows)
        return Batch(self.net, some(self.params), some(self.fixed), x, y, z_0, gamma, data)


@dataclass
class Course:
    """One member's way: filled in while it descends.

    ``losses``: relative train MSE before every step and after the last. ``snapshots``: step -> parameters then, taken
    at times that double, the first at 0 and the last at the end.
    """

    losses: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    status: str = "unconverged"
    lowest: float = math.inf
    time: float = 0.0
    lambda_max: float = math.nan
    shrink: float = 1.0
    run: int = 0  # steps since momentum began anew
    interval: int = 1
    due: int = 0
    backtracked: bool = False
    new_point: bool = True
    next_snapshot: float = math.nan


def host(values: Tensor) -> list[list[float]]:
    """The one place where the descent waits for its device: [k, m] numbers, once an iteration."""
    return values.tolist()


def descend(batch: Batch, rule: Rule, progress: Callable[[float], None] | None = None) -> list[Course]:
    """Train every member to the rule's relative train MSE; members that are finished leave the batch.

    A step is ``theta <- theta - eta gamma^2 grad L`` with ``L = 1/(2N) sum r^2`` and ``eta = c / lambda_max(K_t / N)``;
    one after which the loss is clearly higher, or not finite, is taken back and halved. An accelerated rule goes on by
    ``k / (k + 3)`` of the last move (Nesterov 1983), k counted anew when the loss rises (O'Donoghue and Candes 2015,
    "Adaptive restart"); then losses, snapshots and the end are those of the points where gradients are taken.

    Args:
        progress: told now and then which share of the way to the tolerance (in log loss) is done.

    Returns:
        a course a member, in the order of the batch.
    """
    courses = [Course() for _ in batch.data]
    active = list(range(len(courses)))
    descent = _Descent(batch, rule, courses)
    for iteration in itertools.count():
        if not active:
            break
        if progress is not None and iteration % PROGRESS_EVERY == 0:
            progress(sum(_share(course, rule) for course in courses) / len(courses))
        finished = descent.iterate(active)
        if finished:
            rows = [row for row, member in enumerate(active) if member not in finished]
            active = [active[row] for row in rows]
            descent.keep(rows)
    return courses


class _Descent:
    """The batch while it shrinks; rows of its tensors are the active members."""

    def __init__(self, batch: Batch, rule: Rule, courses: list[Course]) -> None:
        self.rule = rule
        self.courses = courses
        # Where the last step and the one before ended; momentum goes on from there.
        self.reached: list[Tensor] = []
        self.reached_before: list[Tensor] = []
        self.load(batch)
        self.lambda_max = batch.gamma.new_full((len(batch.data),), math.nan)

    def load(self, batch: Batch) -> None:
        self.batch = batch
        self.previous = [parameter.detach().clone() for parameter in batch.params.values()]
        if self.rule.accelerated and not self.reached:
            self.reached, self.reached_before = ([p.clone() for p in self.previous] for _ in range(2))
        self.scale = batch.y.flatten(1).square().sum(1)

    def keep(self, rows: list[int]) -> None:
        if rows:
            self.lambda_max = self.lambda_max[rows]
            self.reached = [tensor[rows] for tensor in self.reached]
            self.reached_before = [tensor[rows] for tensor in self.reached_before]
            self.load(self.batch.keep(rows))

    def iterate(self, active: list[int]) -> set[int]:
        """One forward pass, one host read, and a step (or its withdrawal). Returns the members that are finished."""
        courses = [self.courses[member] for member in active]
        refreshed = self.refresh(courses)
        leaves = [parameter.requires_grad_() for parameter in self.batch.params.values()]
        error = residuals(self.batch, dict(zip(self.batch.params, leaves, strict=True)))
        squares = error.flatten(1).square().sum(1)
        losses, lambdas = host(torch.stack([squares.detach() / self.scale, self.lambda_max]))
        usable = [_usable(lambdas[row]) if row in refreshed else True for row in range(len(courses))]
        worse = [row for row, course in enumerate(courses) if not usable[row] or _is_worse(course, losses[row])]
        for row in refreshed:
            if row not in worse:  # what a point says that is taken back counts for nothing
                _schedule(courses[row], lambdas[row])
        if worse:
            return self.take_back(active, courses, worse)
        finished = set()
        for row, (member, course) in enumerate(zip(active, courses, strict=True)):
            if course.new_point:
                if course.losses and losses[row] > course.losses[-1]:
                    course.run = 0
                course.losses.append(losses[row])
                course.lowest = min(course.lowest, losses[row])
                course.new_point = False
                self.snapshot(row, course, last=self.is_finished(course))
            if self.is_finished(course):
                finished.add(member)
        if not finished:
            self.step(courses, squares, leaves)
        return finished

    def is_finished(self, course: Course) -> bool:
        if course.losses[-1] <= self.rule.tolerance:
            course.status = "done"
        return course.status == "done" or len(course.steps) >= self.rule.max_steps

    def step(self, courses: list[Course], squares: Tensor, leaves: list[Tensor]) -> None:
        etas = [self.rule.step * course.shrink / course.lambda_max for course in courses]
        n = self.batch.x.shape[1]
        # The gradient of this sum with respect to a member's parameters is its whole update, eta gamma^2 grad L.
        weights = self.batch.gamma.square() * torch.tensor(etas, dtype=torch.float64).to(squares) / (2 * n)
        updates = torch.autograd.grad((weights * squares).sum(), leaves)
        with torch.no_grad():
            torch._foreach_copy_(self.previous, leaves)
            torch._foreach_sub_(leaves, list(updates))
        for course, eta in zip(courses, etas, strict=True):
            course.steps.append(eta)
            course.momenta.append(course.run / (course.run + 3) if self.rule.accelerated else 0.0)
            course.run += 1
            course.time += eta
            course.new_point = True
        if self.rule.accelerated:
            self.extrapolate(leaves, [course.momenta[-1] for course in courses])

    @torch.no_grad()
    def extrapolate(self, leaves: list[Tensor], momenta: list[float]) -> None:
        """Move on from the points just reached, by a share of the way from the points reached before."""
        torch._foreach_copy_(self.reached_before, self.reached)
        torch._foreach_copy_(self.reached, leaves)
        share = torch.tensor(momenta, dtype=torch.float64).to(leaves[0])
        for leaf, reached, before in zip(leaves, self.reached, self.reached_before, strict=True):
            leaf.add_((reached - before) * share.view(-1, *[1] * (leaf.ndim - 1)))

    def take_back(self, active: list[int], courses: list[Course], worse: list[int]) -> set[int]:
        """Undo the last step of the members whose loss rose, and halve their next one."""
        diverged = set()
        with torch.no_grad():
            for row in worse:
                course = courses[row]
                for parameter, before in zip(self.batch.params.values(), self.previous, strict=True):
                    parameter[row] = before[row]
                for reached, before in zip(self.reached, self.reached_before, strict=True):
                    reached[row] = before[row]
                if course.steps:
                    course.time -= course.steps.pop()
                    course.momenta.pop()
                course.run = 0
                course.shrink /= 2
                course.backtracked, course.new_point = True, False
                course.due, course.interval = len(course.steps), 1
                if not course.losses or course.shrink < SMALLEST_SHRINK:
                    course.status = "diverged"
                    course.losses = course.losses or [math.nan]
                    self.snapshot(row, course, last=True)
                    diverged.add(active[row])
        return diverged

    def snapshot(self, row: int, course: Course, last: bool) -> None:
        step = len(course.steps)
        if step == 0:
            course.next_snapshot = 1 / course.lambda_max if _usable(course.lambda_max) else math.inf
        if step == 0 or last or course.time >= course.next_snapshot:
            course.snapshots[step] = {
                name: parameter[row].detach().clone() for name, parameter in self.batch.params.items()
            }
            while course.time >= course.next_snapshot:
                course.next_snapshot *= 2

    def refresh(self, courses: list[Course]) -> list[int]:
        """Recompute lambda_max of the members for which it is due; returns their rows."""
        due = [row for row, course in enumerate(courses) if len(course.steps) >= course.due]
        for data in sorted({self.batch.data[row] for row in due}):
            rows = [row for row in due if self.batch.data[row] == data]
            self.lambda_max[rows] = lambda_max(self.batch.keep(rows))
        return due


def residuals(batch: Batch, params: dict[str, Tensor]) -> Tensor:
    """f - y with f = (z - z_0) / gamma, [m, N, c]."""
    if len(batch.data) == 1:  # vmap costs time, and convolutions most of theirs
        z = functional_call(batch.net, {name: p[0] for name, p in {**batch.fixed, **params}.items()}, (batch.x[0],))
        return (z[None] - batch.z_0) / batch.gamma[:, None, None] - batch.y

    def one(member: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(batch.net, member, (x,))

    z = torch.vmap(one)({**batch.fixed, **params}, batch.x)
    return (z - batch.z_0) / batch.gamma[:, None, None] - batch.y


def lambda_max(batch: Batch) -> Tensor:
    """The largest eigenvalue of K_t / N, [m], from the first training points; the members share a training set."""
    n, c = batch.y.shape[1:]
    points = min(n, LAMBDA_POINTS, max(1, LAMBDA_ROWS // c))
    params = {name: p.detach() for name, p in {**batch.fixed, **batch.params}.items()}
    kernel = empirical_ntk(batch.net, batch.x[0, :points], params=params)
    assert isinstance(kernel, Tensor)
    matrices = kernel.permute(0, 1, 3, 2, 4).reshape(len(kernel), points * c, points * c)
    return torch.linalg.eigvalsh(torch.nan_to_num(matrices))[:, -1] / points


def _is_worse(course: Course, loss: float) -> bool:
    if not math.isfinite(loss):
        return True
    return course.new_point and bool(course.losses) and loss > course.lowest * (1 + RISE)


def _share(course: Course, rule: Rule) -> float:
    """How much of its way a member has gone: in log loss, or in steps where that is further."""
    if course.status != "unconverged":
        return 1.0
    if not 0 < course.lowest < 1:
        return len(course.steps) / rule.max_steps
    return max(math.log(course.lowest) / math.log(rule.tolerance), len(course.steps) / rule.max_steps)


def _usable(lambda_max: float) -> bool:
    return 0 < lambda_max < math.inf


def _schedule(course: Course, lambda_max: float) -> None:
    """When to refresh next: at once while lambda_max changes by more than a tenth, then ever more rarely."""
    changed = not abs(lambda_max - course.lambda_max) <= 0.1 * course.lambda_max  # nan, the first time, is a change
    course.interval = 1 if changed else min(2 * course.interval, LONGEST_INTERVAL)
    course.due = len(course.steps) + course.interval
    course.lambda_max = lambda_max
    if not course.backtracked:
        course.shrink = min(1.0, 2 * course.shrink)
    course.backtracked = False
