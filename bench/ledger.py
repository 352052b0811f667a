"""What a descent writes down of its members: losses, steps, snapshots, and when to do what next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST_INTERVAL = 25
"""Steps between two refreshes of lambda_max where it hardly changes; a rich kernel grows 100x in fewer."""

SCHEDULES = ("time", "loss", "dense")


@dataclass(frozen=True)
class Course:
    """One member's way.

    ``losses``: relative train loss before every step and after the last, [steps + 1]; ``lambda_max``: the latest known
    before every step. ``snapshots``: step -> parameters then, the first at 0 and the last at the end.
    """

    losses: np.ndarray
    steps: np.ndarray
    momenta: np.ndarray
    lambda_max: np.ndarray
    snapshots: Mapping[int, Mapping[str, Tensor]]
    status: str


@dataclass
class Ledger:
    """State of all members of a descent, [M] each; ``curves`` are [M, capacity], filled up to ``count``.

    Attributes:
        count: steps taken and not taken back.
        lowest: of the relative objectives so far.
        lambda_max: the latest known.
        shrink: factor on the step size, below 1 after a step was taken back.
        run: steps since momentum began anew.
        interval, due: steps between two refreshes of lambda_max, and the count at which the next one is.
        fresh: whether the point where the member stands has not been looked at.
        first_gradient: what the norm of the gradient is compared with.
        next_snapshot: time, or place in the list of levels, of the next snapshot.
    """

    members: int
    count: np.ndarray = field(init=False)
    status: list[str] = field(init=False)
    snapshots: list[dict[int, dict[str, Tensor]]] = field(init=False)

    def __post_init__(self) -> None:
        def filled(value: float, kind: type = float) -> np.ndarray:
            return np.full(self.members, value, kind)

        self.count, self.run, self.due = filled(0, int), filled(0, int), filled(0, int)
        self.interval = filled(1, int)
        self.lowest, self.time, self.lambda_max = filled(np.inf), filled(0.0), filled(np.nan)
        self.shrink, self.next_snapshot = filled(1.0), filled(np.nan)
        self.backtracked, self.fresh = filled(False, bool), filled(True, bool)
        self.first_gradient = filled(np.nan)
        self.status = ["unconverged"] * self.members
        self.snapshots = [{} for _ in range(self.members)]
        self.curves = {name: np.full((self.members, 64), np.nan) for name in ("loss", "step", "momentum", "lambda_max")}

    def write(self, members: np.ndarray, **curves: np.ndarray) -> None:
        """One number a member and curve, of the point or step at its count."""
        at = self.count[members]
        most = at.max()
        for name, values in curves.items():
            curve = self.curves[name]
            if most >= curve.shape[1]:
                curve = self.curves[name] = np.concatenate([curve, np.full_like(curve, np.nan)], 1)
            curve[members, at] = values

    def schedule(self, members: np.ndarray, lambda_max: np.ndarray, often: bool, recover: bool) -> None:
        """When to refresh next: at once while lambda_max changes by more than a tenth, then ever more rarely.

        ``recover``: a step size that was halved grows again.
        """
        known = self.lambda_max[members]
        steady = np.abs(lambda_max - known) <= 0.1 * known  # nan, the first time, is a change
        doubled = np.minimum(2 * self.interval[members], LONGEST_INTERVAL)
        self.interval[members] = 1 if often else np.where(steady, doubled, 1)
        interval = self.interval[members]
        self.due[members] = (self.count[members] // interval + 1) * interval  # members that go alike ask together
        self.lambda_max[members] = lambda_max
        if recover:
            grown = np.minimum(1.0, 2 * self.shrink[members])
            self.shrink[members] = np.where(self.backtracked[members], self.shrink[members], grown)
        self.backtracked[members] = False

    def snapshot_due(
        self, members: np.ndarray, losses: np.ndarray, schedule: str, levels: Sequence[float], start: np.ndarray
    ) -> np.ndarray:
        """Which members' present point is kept: the first of all, and those that their schedule names.

        Args:
            levels: relative losses, the highest first, for the schedule "loss".
            start: the time of the second snapshot, [m], for the schedule "time", read at the first; the others are at
                times that double.
        """
        first = self.count[members] == 0
        if schedule == "dense":
            return np.ones(len(members), bool)
        if schedule == "loss":
            passed = np.searchsorted(-np.asarray(levels), -losses, side="right")  # levels that lie above or at the loss
            due = first | (passed > np.where(first, 0, self.next_snapshot[members]))
            self.next_snapshot[members] = np.where(first, passed, np.fmax(self.next_snapshot[members], passed))
            return due
        self.next_snapshot[members] = np.where(first, start, self.next_snapshot[members])
        due = first | (self.time[members] >= self.next_snapshot[members])
        for member in members[due]:
            while self.time[member] >= self.next_snapshot[member]:
                self.next_snapshot[member] *= 2
        return due

    def state(self) -> dict[str, Any]:
        """Everything, as tensors, lists and dicts; ``restore`` takes it back."""
        arrays = {name: torch.from_numpy(value) for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        curves = {name: torch.from_numpy(curve) for name, curve in self.curves.items()}
        return {"arrays": arrays, "curves": curves, "status": self.status, "snapshots": self.snapshots}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state["arrays"].items():
            setattr(self, name, value.cpu().numpy())
        self.curves = {name: curve.cpu().numpy() for name, curve in state["curves"].items()}
        self.status, self.snapshots = state["status"], state["snapshots"]

    def course(self, member: int) -> Course:
        count = int(self.count[member])
        losses, steps, momenta, lambdas = (
            self.curves[name][member, : count + (name == "loss")].copy()
            for name in ("loss", "step", "momentum", "lambda_max")
        )
        return Course(losses, steps, momenta, lambdas, self.snapshots[member], self.status[member])


def is_usable(lambda_max: np.ndarray) -> np.ndarray:
    return (lambda_max > 0) & np.isfinite(lambda_max)
