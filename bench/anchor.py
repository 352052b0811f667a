"""The exactness anchor: networks at a stationary point of loss + weight decay, by L-BFGS in float64.

There a homogeneous network is kernel regression with its own final NTK, to rounding: by Euler's theorem
``L z = theta . grad z`` for a network of degree L, and a stationary point has ``lambda theta = -grad(loss)``, so that
``f_T(x) = b(x) + K_T(x, X) [K_T(X, X) + gamma^2 N L lambda]^-1 (y - b(X))`` with ``b = -z_0 / gamma`` if the outputs
are centred, else 0 (Lauditi, Bordelon and Pehlevan 2025 state the predictor for infinite width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.batch import Batch, forward
from bench.descent import Rule
from bench.ledger import Course
from bench.savepoint import Savepoint, key_of

MEMORY = 30
"""Pairs of differences that L-BFGS keeps."""
LOOK = 20
"""Iterations between two looks at the gradient: there it may end, and from there a stopped one goes on."""
RENEWAL = 10
"""Looks after which the memory starts anew, which helps a line search that stalls."""


def minimise(
    batch: Batch, rule: Rule, progress: Callable[[float], None] | None = None, savepoint: Savepoint | None = None
) -> list[Course]:
    """Every member by itself to a stationary point of ``L + lambda/2 |theta|^2``, on a device of float64.

    It is done where the norm of the gradient is ``rule.gradient`` times ``lambda |theta|``. There is no time: the steps
    of a course are nan, one a look.

    Args:
        savepoint: where to go on from, if there is something, and where to write the state.

    Raises:
        Interrupted: the process was asked to end, and the state is in the savepoint.
    """
    key = key_of(rule, batch.decisive()) if savepoint else ""
    state: dict[str, Any] = (savepoint and savepoint.load(key, batch.x.device)) or {"done": [], "now": None}

    def look() -> None:
        if savepoint is not None:
            savepoint.look(key, lambda: state)

    courses = []
    for i in range(len(batch.data)):
        member = batch.keep([i])
        start = _point(member)
        if i == len(state["done"]):
            found = _Search(member, rule, state["now"])
            while not found.status:
                state["now"] = found.state()
                found.go(look)
            ended = {"losses": found.losses, "end": _point(member), "status": found.status}
            state = {"done": [*state["done"], ended], "now": None}
        courses.append(_course(start, **state["done"][i]))
        if progress is not None:
            progress((i + 1) / len(batch.data))
    return courses


def _course(start: dict[str, Tensor], losses: list[float], end: dict[str, Tensor], status: str) -> Course:
    unknown = np.full(len(losses) - 1, np.nan)
    snapshots = {0: start, len(losses) - 1: end}
    return Course(np.array(losses), unknown, unknown, unknown, snapshots, status)


class _Search:
    """One member's way to its stationary point, a look at a time; ``status`` is empty until it ends."""

    def __init__(self, batch: Batch, rule: Rule, state: Mapping[str, Any] | None) -> None:
        self.batch, self.rule, self.status = batch, rule, ""
        self.scale = float(rule.loss.value(torch.zeros_like(batch.y), batch.y))
        self.losses: list[float] = []
        if state is not None:
            for name, value in state["point"].items():
                batch.params[name][0] = value
        self.leaves = [parameter.requires_grad_() for parameter in batch.params.values()]
        self.optimiser = self.fresh()
        if state is None:
            self.losses.append(self.evaluate()[0])
        else:
            self.losses += state["losses"]
            self.optimiser.load_state_dict(state["optimiser"])

    def fresh(self) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(
            self.leaves, max_iter=min(LOOK, self.rule.max_steps), history_size=MEMORY, line_search_fn="strong_wolfe",
            tolerance_grad=0.0, tolerance_change=0.0,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """All that the iterations until the next look depend on, copied: they write into the tensors."""
        return {
            "point": _point(self.batch),
            "losses": list(self.losses),
            "optimiser": _copied(self.optimiser.state_dict()),
        }

    def evaluate(self) -> tuple[float, Tensor]:
        """The relative loss, and the objective; its gradient is left in the parameters."""
        for leaf in self.leaves:
            leaf.grad = None
        params = dict(zip(self.batch.params, self.leaves, strict=True))
        f = self.batch.outputs(forward(self.batch, params, self.batch.x))
        loss = self.rule.loss.value(f, self.batch.y)[0]
        penalty = self.rule.weight_decay / 2 * torch.stack([leaf.square().sum() for leaf in self.leaves]).sum()
        (loss + penalty).backward()
        return float(loss.detach()) / self.scale, loss + penalty

    def go(self, look: Callable[[], None]) -> None:
        """On to the next look."""

        def objective() -> Tensor:
            look()
            return self.evaluate()[1]

        if len(self.losses) % RENEWAL == 0:
            self.optimiser = self.fresh()
        self.optimiser.step(objective)
        self.losses.append(self.evaluate()[0])
        gradient = _norm([leaf.grad for leaf in self.leaves if leaf.grad is not None])
        if not math.isfinite(gradient):
            self.status = "diverged"
        elif gradient <= self.rule.gradient * self.rule.weight_decay * _norm(self.leaves):
            self.status = "done"
        elif (len(self.losses) - 1) * LOOK >= self.rule.max_steps:
            self.status = "unconverged"


def _point(batch: Batch) -> dict[str, Tensor]:
    return {name: parameter[0].detach().clone() for name, parameter in batch.params.items()}


def _copied(value: Any) -> Any:
    """The same, with every tensor in it a copy."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list | tuple) else value


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.detach().square().sum() for tensor in tensors]).sum().sqrt())
