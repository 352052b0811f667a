"""``score``: how well each kernel describes anybody's trained network, from two checkpoints, without Hydra."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.compare import (
    Comparison,
    Empirical,
    Features,
    InfiniteWidth,
    Motion,
    Networks,
    Rivals,
    UnavailableError,
    unfinished,
)
from bench.gram import BASES
from bench.networks import width_of
from bench.predict import JITTER
from bench.record import Record, Score
from bench.report import predictor_table, text_table, write_record_page
from bench.trained import History, Member, Trained
from tasks.task import Task

KERNELS = ("after", "initial", "infinite", "features")

Nets = nn.Module | Sequence[nn.Module]


@dataclass(frozen=True)
class Scored:
    """What ``score`` found. Printed, it is the table of the main job, and a line a predictor with its verdict."""

    record: Record

    def __str__(self) -> str:
        lines = [text_table([self.record]), "", predictor_table(self.record)]
        lines += [f"{name}: not scored: {sentence}" for name, sentence in self.record.unavailable.items()]
        return "\n".join(lines)

    def __getitem__(self, name: str) -> Score:
        """One score, such as ``scored["after/skill"]``.

        Raises:
            KeyError: with the names that there are.
        """
        found = self.record.score(name)
        if found is None:
            raise KeyError(f"{name}: there is {', '.join(score.name for score in self.record.scores)}")
        return found

    def save(self, file: str | Path) -> None:
        """Write the page of the main job, tables and plots in one self-contained HTML file."""
        write_record_page(self.record, Path(file))


def score(
    net_0: Nets,
    net_T: Nets,
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any = None,
    gamma: float = 1.0,
    base: str = "init",
    kernels: Sequence[str] = KERNELS,
) -> Scored:
    """Score kernel predictors against a network that anybody trained in any way.

    The network is f = z / gamma, with z the module's output in evaluation mode; all is computed in float64 on the
    device of the modules, which are not changed.

    Args:
        net_0: the module at initialisation, or a sequence of them, one an initialisation on the same data: then there
            are standard errors, verdicts and ceilings.
        net_T: the same after training. Only parameters and buffers may differ from ``net_0``.
        x: [n, *shape], what it was trained on.
        y: [n, c] (or [n]), the labels that it was trained on.
        x_test: [n_test, *shape].
        y_test: [n_test, c], clean labels; without them there is R2, but neither skill nor test error.
        gamma: the output's scale; a centred network is better given as a module that subtracts its start.
        base: of the predictors: "init" (f_0) or "zero"; never f_T, with which any kernel matches.
        kernels: which of "after", "initial", "infinite", "features".

    Raises:
        ValueError: one sentence that names the argument: shapes or parameters that do not fit, unknown kernels or base.
    """
    if base not in BASES:
        raise ValueError(f"base must be 'init' or 'zero', not {base!r}.")
    if not kernels or set(kernels) - set(KERNELS):
        raise ValueError(f"kernels must be some of {', '.join(KERNELS)}, not {list(kernels)}.")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be a positive number, not {gamma!r}.")
    starts, ends = _sequence("net_0", net_0), _sequence("net_T", net_T)
    if len(starts) != len(ends) or not starts:
        raise ValueError(f"net_0 and net_T must be as many modules, not {len(starts)} and {len(ends)}.")
    trained = _trained(starts, ends, _task(x, y, x_test, y_test), gamma, y_test is not None)
    comparisons: list[Comparison] = [Networks(), Motion(), Rivals(base=base)]
    made: dict[str, Comparison] = {
        "after": Empirical("after", base=base),
        "initial": Empirical("initial", base=base),
        "infinite": InfiniteWidth(base=base),
        "features": Features(base=base),
    }
    comparisons += [made[kernel] for kernel in kernels]
    return Scored(_record(trained, comparisons, base, gamma))


def _sequence(argument: str, nets: Nets) -> list[nn.Module]:
    found: list[Any] = list(nets) if isinstance(nets, list | tuple) else [nets]
    if not all(isinstance(net, nn.Module) for net in found):
        raise ValueError(f"{argument} must be a torch.nn.Module or a list of them, not {type(found[0]).__name__}.")
    return found


def _task(x: Any, y: Any, x_test: Any, y_test: Any) -> Task:
    def labels(values: Any) -> Tensor:
        tensor = torch.as_tensor(values).detach().double()
        return tensor[:, None] if tensor.ndim == 1 else tensor

    x_train, test = (torch.as_tensor(values).detach().double() for values in (x, x_test))
    y_train = labels(y)
    unknown = torch.zeros(len(test), *y_train.shape[1:]).to(y_train)
    return Task("checkpoints", x_train, y_train.to(x_train), test.to(x_train),
                (unknown if y_test is None else labels(y_test)).to(x_train))  # fmt: skip


def _trained(starts: list[nn.Module], ends: list[nn.Module], task: Task, gamma: float, labelled: bool) -> Trained:
    states = [[_state(net) for net in pair] for pair in zip(starts, ends, strict=True)]
    first = states[0][0]
    for start, end in states:
        for state in (start, end):
            if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in first.items()}:
                raise ValueError("net_0 and net_T must be the same architecture: their parameters or buffers differ.")
    net = copy.deepcopy(starts[0]).double().eval()
    device = next(iter(first.values())).device
    x = torch.cat([task.x_train, task.x_test]).to(device)
    f_0, f_T = (torch.stack([functional_call(net, pair[i], (x,)) / gamma for pair in states]) for i in (0, 1))
    if f_T.shape[1:] != (len(x), task.outputs):
        raise ValueError(f"y must have the outputs of the network, [n, {f_T.shape[-1]}], not [n, {task.outputs}].")
    stacked = {name: torch.stack([torch.stack([state[name] for state in pair]) for pair in states]) for name in first}
    parameters = {name for name, _ in net.named_parameters()}
    y = task.y_train.to(f_T)
    losses = [[float((f[: len(y)] - y).square().sum() / y.square().sum()) for f in pair]
              for pair in zip(f_0, f_T, strict=True)]  # fmt: skip
    unknown = torch.full((1,), torch.nan, dtype=torch.float64)  # the steps between the two
    return Trained(
        net=net,
        tasks=(task,),
        members=tuple(Member(0, i) for i in range(len(starts))),
        params={name: value for name, value in stacked.items() if name in parameters},
        f_0=f_0.detach(),
        f_T=f_T.detach(),
        gamma=(gamma,) * len(starts),
        history=tuple(
            History(unknown, unknown, torch.tensor(loss, dtype=torch.float64), torch.tensor([0, 1]), unknown)
            for loss in losses
        ),
        status=("done",) * len(starts),
        buffers={name: value for name, value in stacked.items() if name not in parameters},
        labelled=labelled,
    )


def _state(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, floating-point ones in float64."""
    named = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {n: t.detach().double() if t.is_floating_point() else t.detach() for n, t in named.items()}


def _record(trained: Trained, comparisons: Sequence[Comparison], base: str, gamma: float) -> Record:
    scores: list[Score] = []
    unavailable: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for comparison in comparisons:
        try:
            scores += comparison(trained)
            arrays |= comparison.arrays(trained)
        except UnavailableError as reason:
            unavailable[comparison.name] = str(reason)
    task = trained.tasks[0]
    try:
        width = width_of(trained.net)
    except ValueError:
        width = None
    card = {
        "task": task.name, "n_train": task.n_train, "n_test": task.n_test, "x_shape": list(task.x_shape),
        "outputs": task.outputs, "model": type(trained.net).__name__, "width": width,
        "parameters": sum(parameter.numel() for parameter in trained.net.parameters()), "gamma": gamma, "base": base,
        "targets": ["y", "self"], "ridge": 0.0, "jitter": JITTER,
        "relative_train_mse": float(trained.losses.mean()), "seeds": {"data": 1, "init": len(trained.members)},
        "members": len(trained.members), "members_scored": len(trained.members),
        "unfinished": unfinished(scores),
    }  # fmt: skip
    return Record("checkpoints", "done", "", card, tuple(scores), unavailable, arrays)
