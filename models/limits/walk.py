"""Carries kernels along the steps of a network: first of every input with itself, then of tiles of pairs."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.limits.features import channels, gram, joined, lift
from models.limits.graph import EQUAL, FULL, NONE, Step, needs
from models.limits.own import call, own_kernels
from models.limits.quadrature import WORK
from models.limits.state import Kernels, NoInfiniteWidthLimit, equal_positions
from models.limits.trace import Program

KEPT = 2**25 - 2**16  # bytes, just below what glibc's threshold can grow to
SHARE = 2**28  # bytes of the variances' pass where no budget is given
KEEP = 2**30  # and of attention's weights

Cut = tuple[int, int]


class Walk:
    """One call of a limit: the features of its inputs, their kernels with themselves, and any tile of pairs."""

    def __init__(self, program: Program, x1: Tensor, x2: Tensor | None, memory: int | None) -> None:
        self.steps, self.output = program.steps, program.output
        self.n1, self.symmetric = len(x1), x2 is None
        if x1.device.type == "cpu":
            _keep_freed_memory()
        self.left = channels(program.run_features(x1))
        self.right = self.left if x2 is None else channels(program.run_features(x2))
        self.memos: dict[Step, dict[str, Any]] = {step: {} for step in self.steps}
        self.levels = needs(self.steps, {self.output: EQUAL})
        self.largest = 1
        both = self.left if x2 is None else {step: joined(self.left[step], self.right[step]) for step in self.left}
        x = x1 if x2 is None else torch.cat([x1, x2])
        self.program, self.both, self.x = program, both, x
        self.share = (memory or 2 * SHARE) // 2
        self.own = own_kernels(program, both, x, self.memos, self.share, memory // 4 if memory else KEEP)
        self._weights: dict[str, tuple[Cut, dict[Step, Tensor]]] = {}  # the latest of rows and of columns
        self.tile(slice(0, 1), slice(0, 1))  # one pair finds what does not fit, and how large a pair is

    def error(self) -> float:
        """The largest error that a quadrature stated."""
        return max((memo.get("error", 0.0) for memo in self.memos.values()), default=0.0)

    def entries(self) -> int:
        """The largest number of covariances of one pair of inputs that any step holds."""
        return self.largest

    def fixed_bytes(self) -> int:
        """Memory that is taken whatever the tile: what is kept of all inputs, and nodes of quadrature."""
        features = {id(f.values): f.values.nbytes for side in (self.left, self.right, self.both) for f in side.values()}
        return self.own.nbytes() + sum(features.values()) + (WORK if self.error() > 0 else 0)

    def bytes_per_input(self) -> float:
        """Memory that a row or column of a tile takes: weights of attention that are not kept."""
        return 2.0 * self.own.weights_bytes

    def tile(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Kernels [rows, cols] of the output."""
        shift = 0 if self.symmetric else self.n1
        second = slice(cols.start + shift, cols.stop + shift)
        same = self.symmetric and rows.start == cols.start
        mixings = self._mixings("rows", rows), self._mixings("cols", second)
        values: dict[Step, Kernels] = {}
        users = _uses(self.steps, self.levels)
        for step in self.steps:
            if self.levels[step] == NONE:
                continue
            if step.apply is None:
                values[step] = self._input_tile(step, rows, cols, same)
            else:
                args = [self._arg(step, arg, values[arg], rows, second, mixings) for arg in step.args]
                values[step] = self._fix(step, call(step, args), rows, same)
            self.largest = max(self.largest, math.prod(values[step].nngp.shape[2:]))
            _release(values, users, step)
        result = values[self.output]
        self._check_output(result)
        return result.nngp, result.ntk

    def _check_output(self, k: Kernels) -> None:
        if k.space:
            raise NoInfiniteWidthLimit(
                f"The network returns {k.positions()} for each input: end it in torch.nn.Flatten and a linear layer, "
                "or in a mean over positions."
            )

    def _input_tile(self, step: Step, rows: slice, cols: slice, same: bool) -> Kernels:
        full = self.levels[step] == FULL
        k = gram(self.left[step].rows(rows), self.right[step].rows(cols), full)
        return replace(k, same="tile" if same else "none")

    def _at_level(self, step: Step, k: Kernels) -> Kernels:
        """Only as many covariances as the step needs: another user of its argument may need more."""
        if self.levels[step] == FULL or step.mixes:
            return k
        return k.at_equal_positions()

    def _mixings(self, side: str, cut: slice) -> dict[Step, Tensor]:
        """Weights of attention of some inputs: those kept, or made again for them, once for tiles side by side."""
        if not self.own.weights_bytes:
            return {s: w if len(w) == 1 else w[cut] for s, w in self.own.mixings.items()}
        which = cut.start, cut.stop
        if side not in self._weights or self._weights[side][0] != which:
            self._weights.pop(side, None)
            few = {step: f.rows(cut) for step, f in self.both.items()}
            made = own_kernels(self.program, few, self.x[cut], self.memos, self.share, sys.maxsize)
            self._weights[side] = which, made.mixings
        return self._weights[side][1]

    def _arg(
        self,
        step: Step,
        arg: Step,
        k: Kernels,
        rows: slice,
        second: slice,
        mixings: tuple[dict[Step, Tensor], dict[Step, Tensor]],
    ) -> Kernels:
        """What a step's rule gets: the kernels of its argument, and what it reads of each input alone."""

        def both(q: Tensor) -> tuple[Tensor, Tensor]:
            return lift(q[rows, None], k, first=True), lift(q[None, second], k, first=False)

        k = replace(self._at_level(step, k), memo=self.memos[step])
        variances = both(self.own.kernels[arg][0]) if step.variances else None
        means = both(self.own.means[arg]) if step.means and arg in self.own.means else None
        mixing = None
        if step.weights is not None:
            first, other = (side[step] for side in mixings)
            mixing = first[:, None], other[None]
        return replace(k, variances=variances, means=means, mixing=mixing)

    def _fix(self, step: Step, k: Kernels, rows: slice, same: bool) -> Kernels:
        """The exact kernels of inputs with themselves, where an angle was rounded."""
        if not same or not (step.variances or step.own) or step not in self.own.kernels:
            return k
        kernels = zip((k.nngp, k.ntk), self.own.kernels[step], strict=True)
        nngp, ntk = (_with_own(t, own[rows], k) for t, own in kernels)
        return replace(k, nngp=nngp, ntk=ntk)


def _keep_freed_memory() -> None:
    """Make glibc keep blocks of megabytes that are freed, as it does once it has freed a larger one.

    Each layer frees and takes a dozen; handed back to the system, their page faults cost as much as the arithmetic.
    """
    torch.empty(KEPT, dtype=torch.uint8)


def _with_own(tile: Tensor, own: Tensor, k: Kernels) -> Tensor:
    """A tile whose first columns are its rows, with the kernels of each input with itself at equal positions."""
    # Out of place: a rule may have returned its input or an expanded tensor.
    tile = tile.clone()
    same = tile.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    if k.full:
        same = equal_positions(same, len(k.space))
    same.copy_(own)
    return tile


def _uses(steps: list[Step], levels: dict[Step, int]) -> dict[Step, int]:
    """How many steps are still to read each step's result."""
    counts = dict.fromkeys(steps, 0)
    for step in steps:
        if levels[step] != NONE:
            for arg in step.args:
                counts[arg] += 1
    return counts


def _release(values: dict[Step, Kernels], users: dict[Step, int], step: Step) -> None:
    """Forget what no step reads any more."""
    for arg in step.args:
        users[arg] -= 1
        if users[arg] == 0:
            del values[arg]
