"""What training leaves behind: ``Trained``, the input of every comparison, and the kernels derived from it."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.networks import outputs
from bench.ntk import empirical_ntk
from tasks.task import Task

TOGETHER = 2**26
"""Bytes of kernels that members are asked for at once: passes of small networks cost more to start than to make."""

Richness = float | str
"""A number (gamma = richness sqrt(width)) or "ntk" (gamma = 1)."""


def seed_of(axis: str, *index: int) -> int:
    """The seed of one value of a named axis ("data", "init", "order"), the same in every run and on every machine.

    So two runs differ only in what they say: the same member of another width or richness has the same data. Inits are
    nested in data draws, ``seed_of("init", data, init)``: six networks are six independent ones.
    """
    return int.from_bytes(hashlib.sha256(":".join([axis, *map(str, index)]).encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Member:
    """One network of a cell, named by its place on every axis of members.

    Attributes:
        data, init, order: seeds: which data draw, which initialisation, which order of mini-batches. Initialisations
            are nested in data draws, and orders in initialisations.
        richness: None: the trainer's own; likewise ``step`` (c of the adaptive step size) and ``rate`` (a constant step
            size).
        target: which set of labels: None: all columns of the task's y; a number t: columns t c to (t + 1) c, for a
            network of c outputs. Members that differ in nothing else start from the same network, on the same inputs.
        crossed: the initialisation is the same one on every data draw, for splits of the variance.
    """

    data: int
    init: int
    order: int = 0
    richness: Richness | None = None
    step: float | None = None
    rate: float | None = None
    target: int | None = None
    crossed: bool = False

    @property
    def name(self) -> str:
        """Usable as a file name; distinct for distinct members."""
        named = {"richness": self.richness, "step": self.step, "rate": self.rate, "target": self.target}
        axes = "".join(f"-{axis}{value}" for axis, value in named.items() if value is not None)
        return f"data{self.data}-init{self.init}-order{self.order}{axes}{'-crossed' if self.crossed else ''}"

    @property
    def init_seed(self) -> int:
        return seed_of("init", self.init) if self.crossed else seed_of("init", self.data, self.init)

    @property
    def order_seed(self) -> int:
        return seed_of("order", self.data, self.init, self.order)


def members(
    data: int,
    init: int,
    order: int = 1,
    *,
    richness: Sequence[Richness | None] = (None,),
    step: Sequence[float | None] = (None,),
    rate: Sequence[float | None] = (None,),
    target: Sequence[int | None] = (None,),
    crossed: bool = False,
) -> list[Member]:
    """Every combination of so many data draws, initialisations and orders, and of the values of the other axes."""
    return [
        Member(*combination, crossed)
        for combination in itertools.product(range(data), range(init), range(order), richness, step, rate, target)
    ]


def label_set(task: Task, target: int | None, outputs: int) -> Task:
    """The task with the labels of one target only (see ``Member.target``).

    Raises:
        ValueError: the task has no such columns.
    """
    if target is None:
        return task
    columns = slice(target * outputs, (target + 1) * outputs)
    if target < 0 or columns.stop > task.outputs:
        raise ValueError(
            f"target {target} of a network of {outputs} outputs needs {columns.stop} columns of labels, and "
            f"{task.name} has {task.outputs}."
        )
    return replace(task, y_train=task.y_train[:, columns], y_test=task.y_test[:, columns])


@dataclass(frozen=True)
class History:
    """The course of one member's training.

    Attributes:
        steps: learning rate of every step, [n_steps]; their sum is the time t.
        momenta: the share of the last move by which each step went on, [n_steps]; zero without acceleration.
        loss: relative train loss before every step and after the last, [n_steps + 1]: L over that of zero outputs,
            which for mean squared error is the relative train MSE.
        snapshot_steps: at which step each snapshot was taken, [S]; 0 first, the last step last.
        lambda_max: of K_t / N as the step rule knew it before every step, [n_steps]; nan where it did not ask.
    """

    steps: Tensor
    momenta: Tensor
    loss: Tensor
    snapshot_steps: Tensor
    lambda_max: Tensor

    @property
    def sharpness(self) -> Tensor:
        """[n_steps], lambda_max(K_t / N) times the step: 2 is the edge of stability."""
        return self.lambda_max * self.steps

    @property
    def snapshot_times(self) -> Tensor:
        """[S], the time of each snapshot."""
        return torch.cat([self.steps.new_zeros(1), self.steps.cumsum(0)])[self.snapshot_steps]

    @property
    def snapshot_loss(self) -> Tensor:
        """[S], the relative train loss at each snapshot."""
        return self.loss[self.snapshot_steps]


@dataclass(frozen=True, eq=False)
class Trained:
    """The trained members of one cell. Leading axis m: members; S snapshots, the first at time 0, the last at the end.

    The network is scaled and, unless the trainer says otherwise, centred: ``f = (z - z_0) / gamma``.

    Attributes:
        net: the architecture; its own parameter values mean nothing.
        tasks: one data draw each; ``members[i].data`` is an index into it.
        params: parameter name -> [m, S, ...], at the snapshots.
        f_0, f_T: outputs before and after training, [m, n_train + n_test, c]: train rows, then test rows. f_0 is zero
            for a centred network.
        gamma: [m].
        history: one a member.
        status: one a member: "done", "unconverged" (the step limit came first) or "diverged".
        settings: the trainer's, for the result card.
        buffers: buffer name -> [m, S, ...], where they differ from the net's own (running statistics).
        labelled: whether the tasks' y_test are real; False: what needs test labels is not asked.
    """

    net: nn.Module
    tasks: Sequence[Task]
    members: tuple[Member, ...]
    params: dict[str, Tensor]
    f_0: Tensor
    f_T: Tensor
    gamma: tuple[float, ...]
    history: tuple[History, ...]
    status: tuple[str, ...]
    settings: dict[str, object] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    labelled: bool = True

    @property
    def params_0(self) -> dict[str, Tensor]:
        return {name: value[:, 0] for name, value in self.params.items()}

    @property
    def params_T(self) -> dict[str, Tensor]:
        return {name: value[:, -1] for name, value in self.params.items()}

    @property
    def times(self) -> Tensor:
        """[m], the sum of steps."""
        return torch.stack([history.steps.sum() for history in self.history])

    @property
    def losses(self) -> Tensor:
        """[m], relative train loss at the end."""
        return torch.stack([history.loss[-1] for history in self.history])

    @property
    def snapshots(self) -> int:
        return next(iter(self.params.values())).shape[1]

    @property
    def ntk(self) -> Kernels:
        """``ntk[member, snapshot]``: [n_train + n_test, n_train, c, c] in float64; 0 is K_0, -1 is K_T."""
        return Kernels(self, self._kept)

    @functools.cached_property
    def _kept(self) -> KeptKernels:
        return KeptKernels()

    def task(self, member: int) -> Task:
        """The member's data, with the labels of its own target."""
        return label_set(self.tasks[self.members[member].data], self.members[member].target, self.f_T.shape[2])

    def z_0(self, member: int) -> Tensor:
        """The module's own output at the start, [n_train + n_test, c], in float64; ``-z_0 / gamma`` is the base of a
        centred network with weight decay."""
        task = self.task(member)
        params = {name: value[member, :1] for name, value in self.params.items()}
        return outputs(self.net_at(member, 0), params, torch.cat([task.x_train, task.x_test]))[0]

    def net_at(self, member: int, snapshot: int) -> nn.Module:
        """The architecture with the buffers of that moment; its parameter values still mean nothing."""
        if not self.buffers:
            return self.net
        net = copy.deepcopy(self.net)
        for name, buffer in net.named_buffers():
            if name in self.buffers:
                buffer.copy_(self.buffers[name][member, snapshot])
        return net

    def together(self, entries: int) -> list[list[int]]:
        """The members in batches for ``kernels``, of one data draw each, if a kernel has so many entries; a member that
        has buffers of its own is alone."""
        most = 1 if self.buffers else max(1, TOGETHER // (8 * entries))
        draws = [[i for i, member in enumerate(self.members) if member.data == data] for data in range(len(self.tasks))]
        return [draw[start : start + most] for draw in draws for start in range(0, len(draw), most)]

    def kernels(
        self, members: Sequence[int], snapshot: int, x1: Tensor, x2: Tensor | None = None, **options: Any
    ) -> Any:
        """``empirical_ntk`` of some members (a batch of ``together``) at a snapshot: in float64, the members first."""
        params = {name: value[list(members), snapshot] for name, value in self.params.items()}
        return empirical_ntk(self.net_at(members[0], snapshot), x1, x2, dtype=torch.float64, params=params, **options)

    def select(self, keep: Sequence[int]) -> Trained:
        """Only these members, for example those that converged."""
        index = list(keep)
        return replace(
            self,
            members=tuple(self.members[i] for i in index),
            params={name: value[index] for name, value in self.params.items()},
            buffers={name: value[index] for name, value in self.buffers.items()},
            f_0=self.f_0[index],
            f_T=self.f_T[index],
            gamma=tuple(self.gamma[i] for i in index),
            history=tuple(self.history[i] for i in index),
            status=tuple(self.status[i] for i in index),
        )


@dataclass
class KeptKernels:
    """What a ``Trained`` holds of its kernels; without a way back to it, so that both go when nobody needs them."""

    kernels: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    seconds: float = 0.0


class Kernels:
    """The members' empirical NTKs at the snapshots, each computed when first asked for.

    They are not kept on disk: the parameters are, which are smaller, and give the same kernel to the bit. K_0 and K_T
    of every member stay in memory, since most comparisons read them; the others are computed at each request.
    """

    def __init__(self, trained: Trained, kept: KeptKernels) -> None:
        self._trained, self._kept = trained, kept

    @property
    def seconds(self) -> float:
        """CPU time spent on them so far."""
        return self._kept.seconds

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        member, snapshot = key[0] % len(self._trained.members), key[1] % self._trained.snapshots
        if snapshot not in (0, self._trained.snapshots - 1):
            return self._compute([member], snapshot)[0]
        kernels = self._kept.kernels
        if (member, snapshot) not in kernels:
            (batch,) = (batch for batch in self._batches() if member in batch)
            kernels |= {(i, snapshot): kernel for i, kernel in zip(batch, self._compute(batch, snapshot), strict=True)}
        return kernels[member, snapshot]

    def at(self, snapshot: int) -> Iterator[tuple[int, Tensor]]:
        """Every member and its kernel at this snapshot, in no order."""
        for batch in self._batches():
            if snapshot in (0, self._trained.snapshots - 1):
                yield from ((member, self[member, snapshot]) for member in batch)
            else:
                yield from zip(batch, self._compute(batch, snapshot), strict=True)

    def _batches(self) -> list[list[int]]:
        task, outputs = self._trained.tasks[0], self._trained.f_T.shape[2]
        return self._trained.together((task.n_train + task.n_test) * task.n_train * outputs**2)

    def _compute(self, members: Sequence[int], snapshot: int) -> Tensor:
        started = time.process_time()
        task, device = self._trained.task(members[0]), self._trained.f_T.device
        x_train = task.x_train.to(device)
        found = self._trained.kernels(members, snapshot, torch.cat([x_train, task.x_test.to(device)]), x_train)
        assert isinstance(found, Tensor)
        self._kept.seconds += time.process_time() - started
        return found


def join(parts: Sequence[Trained]) -> Trained:
    """The members of several ``Trained`` of one cell as one, in the order given; the last snapshot of those that have
    fewer is repeated."""
    longest = max(part.snapshots for part in parts)
    parts = [_padded(part, longest) for part in parts]
    first = parts[0]
    return replace(
        first,
        members=tuple(member for part in parts for member in part.members),
        params={name: torch.cat([part.params[name] for part in parts]) for name in first.params},
        buffers={name: torch.cat([part.buffers[name] for part in parts]) for name in first.buffers},
        f_0=torch.cat([part.f_0 for part in parts]),
        f_T=torch.cat([part.f_T for part in parts]),
        gamma=tuple(gamma for part in parts for gamma in part.gamma),
        history=tuple(history for part in parts for history in part.history),
        status=tuple(status for part in parts for status in part.status),
    )


def _padded(part: Trained, snapshots: int) -> Trained:
    """The last snapshot repeated until there are so many."""
    kept = torch.arange(snapshots).clamp_max(part.snapshots - 1)
    if len(kept) == part.snapshots:
        return part
    return replace(
        part,
        params={name: value[:, kept.to(value.device)] for name, value in part.params.items()},
        buffers={name: value[:, kept.to(value.device)] for name, value in part.buffers.items()},
        history=tuple(replace(one, snapshot_steps=one.snapshot_steps[kept]) for one in part.history),
    )
