"""Carries kernels along the steps of a network: first of every input with itself, then of tiles of pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.limits.elementwise import activate
from models.limits.graph import FULL, NONE, Step, needs, read_variances
from models.limits.state import Kernels, NoInfiniteWidthLimit, equal_positions
from models.limits.trace import Program

LIVE = 12  # tensors of the size of one input's kernel alive at once, at most
KEPT = 2**25 - 2**16  # bytes, just below what glibc's threshold can grow to
SHARE = 2**28  # bytes of the variances' pass where no budget is given


class Walk:
    """One call of a limit: the features of its inputs, their kernels with themselves, and any tile of pairs."""

    def __init__(self, program: Program, x1: Tensor, x2: Tensor | None, memory: int | None) -> None:
        self.steps, self.output = program.steps, program.output
        self.n1, self.symmetric = len(x1), x2 is None
        self.memory = memory or SHARE
        if x1.device.type == "cpu":
            _keep_freed_memory()
        self.left = _channels(program.run_features(x1))
        self.right = self.left if x2 is None else _channels(program.run_features(x2))
        self.memos: dict[Step, dict[str, Any]] = {step: {} for step in self.steps}
        self.levels = needs(self.steps, [self.output])
        self.own_levels = needs(self.steps, read_variances(self.steps))
        self.largest = 1
        both = self.left if x2 is None else {step: _joined(self.left[step], self.right[step]) for step in self.left}
        self.diagonals = self._diagonals(both)
        self.tile(slice(0, 1), slice(0, 1))  # one pair finds what does not fit, and how large a pair is

    def error(self) -> float:
        """The largest error that a quadrature stated."""
        return max((memo.get("error", 0.0) for memo in self.memos.values()), default=0.0)

    def entries(self) -> int:
        """The largest number of covariances of one pair of inputs that any step holds."""
        return self.largest

    def tile(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Kernels [rows, cols] of the output."""
        shift = 0 if self.symmetric else self.n1
        second = slice(cols.start + shift, cols.stop + shift)
        same = self.symmetric and rows.start == cols.start
        values: dict[Step, Kernels] = {}
        users = _uses(self.steps, self.levels)
        for step in self.steps:
            if self.levels[step] == NONE:
                continue
            if step.apply is None:
                values[step] = self._input_tile(step, rows, cols, same)
            else:
                args = [self._with_variances(step, arg, values[arg], rows, second) for arg in step.args]
                values[step] = self._fix(step, self._call(step, args), rows, same)
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
        k = _gram(self.left[step].rows(rows), self.right[step].rows(cols), full)
        return replace(k, same="tile" if same else "none")

    def _at_level(self, step: Step, k: Kernels) -> Kernels:
        """Only as many covariances as the step needs: another user of its argument may need more."""
        if self.levels[step] == FULL or step.mixes:
            return k
        return k.at_equal_positions()

    def _with_variances(self, step: Step, arg: Step, k: Kernels, rows: slice, second: slice) -> Kernels:
        k = replace(self._at_level(step, k), memo=self.memos[step], variances=None)
        if not step.variances:
            return k
        q = self.diagonals[arg][0]
        return replace(k, variances=(_lift(q[rows, None], k, first=True), _lift(q[None, second], k, first=False)))

    def _fix(self, step: Step, k: Kernels, rows: slice, same: bool) -> Kernels:
        """The exact kernels of inputs with themselves, where an angle was rounded."""
        if not same or not (step.variances or step.own) or step not in self.diagonals:
            return k
        nngp, ntk = (_with_own(t, own[rows], k) for t, own in zip((k.nngp, k.ntk), self.diagonals[step], strict=True))
        return replace(k, nngp=nngp, ntk=ntk)

    def _call(self, step: Step, args: list[Kernels]) -> Kernels:
        assert step.apply is not None
        try:
            if step.role == "activation":
                return activate(step.apply, step.function, args[0])
            if step.role == "layer":
                return replace(step.apply(*(k.with_gain(k.nngp) for k in args)), tied=False)
            if step.mixes or step.role in (None, "other"):
                # Merging is for layers only, which are to come: not tied.
                tied = any(k.tied or (k.gain and not step.merges) for k in args)
                return replace(step.apply(*(k.with_gain(k.nngp) for k in args)), tied=tied)
            return step.apply(*args)
        except NoInfiniteWidthLimit as error:
            raise NoInfiniteWidthLimit(f"{step.label}: {error}.") from None

    # The kernels of each input with itself.

    def _diagonals(self, features: dict[Step, _Features]) -> dict[Step, tuple[Tensor, Tensor]]:
        """NNGP and NTK [n, *positions] of each input with itself at equal positions, for all steps.

        Where pooling comes before a nonlinearity, covariances between positions are needed on the way, of as many
        inputs at a time as the budget allows.
        """
        n = next(iter(features.values())).values.shape[0]
        chunk = n
        if FULL in self.own_levels.values():
            positions = max(math.prod(f.space) for f in features.values())
            size = next(iter(features.values())).values.element_size()
            chunk = max(1, min(n, int(self.memory / (2 * LIVE * size * positions**2))))
        parts: dict[Step, list[tuple[Tensor, Tensor]]] = {}
        for start in range(0, n, chunk):
            cut = slice(start, min(start + chunk, n))
            for step, pair in self._own_kernels({s: f.rows(cut) for s, f in features.items()}).items():
                parts.setdefault(step, []).append(pair)
        return {
            step: (torch.cat([p[0] for p in found]), torch.cat([p[1] for p in found])) for step, found in parts.items()
        }

    def _own_kernels(self, features: dict[Step, _Features]) -> dict[Step, tuple[Tensor, Tensor]]:
        equal: dict[Step, Kernels] = {}
        full: dict[Step, Kernels] = {}
        wanted = {s for s in self.steps if self.own_levels[s] != NONE}
        # Also what reads them: tables are set up here, and the diagonals of symmetric tiles come from here.
        wanted |= {s for s in self.steps if (s.variances or s.own) and all(a in wanted for a in s.args)}
        for step in self.steps:
            if step not in wanted:
                continue
            if step.apply is None:
                equal[step], full_kernels = _own_gram(features[step], self.own_levels[step] == FULL)
                if full_kernels is not None:
                    full[step] = full_kernels
                continue
            memo = self.memos[step]
            if not step.mixes:
                args = [self._own_arg(step, equal[arg], equal[arg], memo) for arg in step.args]
                equal[step] = self._call(step, args)
            if self.own_levels[step] == FULL or step.mixes:
                args = [self._own_arg(step, self._full_arg(arg, equal, full), equal[arg], memo) for arg in step.args]
                k = self._call(step, args)
                if not step.mixes and (step.variances or step.own) and k.full:
                    nngp, ntk = k.nngp.clone(), k.ntk.clone()
                    equal_positions(nngp, len(k.space)).copy_(equal[step].nngp)
                    equal_positions(ntk, len(k.space)).copy_(equal[step].ntk)
                    k = replace(k, nngp=nngp, ntk=ntk)
                full[step] = k
                if step.mixes:
                    equal[step] = replace(k.at_equal_positions(), diagonal=True)
        return {step: (k.nngp, k.ntk) for step, k in equal.items()}

    def _full_arg(self, arg: Step, equal: dict[Step, Kernels], full: dict[Step, Kernels]) -> Kernels:
        if arg in full:
            return full[arg]
        return replace(equal[arg], diagonal=False, same="all")

    def _own_arg(self, step: Step, k: Kernels, equal: Kernels, memo: dict[str, Any]) -> Kernels:
        variances = None
        if step.variances:
            variances = _lift(equal.nngp, k, first=True), _lift(equal.nngp, k, first=False)
        return replace(k, memo=memo, variances=variances)


def _keep_freed_memory() -> None:
    """Make glibc keep blocks of megabytes that are freed, as it does once it has freed a larger one.

    Each layer frees and takes a dozen; handed back to the system, their page faults cost as much as the arithmetic.
    """
    torch.empty(KEPT, dtype=torch.uint8)


class _Features:
    """Features of inputs as [n, channels, positions]."""

    def __init__(self, values: Tensor, space: tuple[int, ...], channel_axis: int) -> None:
        self.values, self.space, self.channel_axis = values, space, channel_axis

    def rows(self, cut: slice) -> _Features:
        return _Features(self.values[cut], self.space, self.channel_axis)


def _channels(features: dict[Step, Tensor]) -> dict[Step, _Features]:
    found = {}
    for step, x in features.items():
        axis = x.ndim - 1 if step.channels_last else 1
        moved = x.movedim(axis, 1)
        found[step] = _Features(moved.flatten(2) if x.ndim > 2 else moved[..., None], tuple(moved.shape[2:]), axis)
    return found


def _joined(first: _Features, second: _Features) -> _Features:
    return _Features(torch.cat([first.values, second.values]), first.space, first.channel_axis)


def _gram(left: _Features, right: _Features, full: bool) -> Kernels:
    """Covariances of features: averages over channels."""
    x, y, space = left.values, right.values, left.space
    channels, positions = x.shape[1:]
    full = full and bool(space)
    if full:
        product = x.transpose(1, 2).reshape(-1, channels) @ y.transpose(0, 1).reshape(channels, -1)
        product = product.reshape(len(x), positions, len(y), positions).transpose(1, 2)
        nngp = product.reshape(len(x), len(y), *space, *space)
    elif space:
        nngp = torch.matmul(x.permute(2, 0, 1), y.permute(2, 1, 0)).permute(1, 2, 0)
        nngp = nngp.reshape(len(x), len(y), *space)
    else:
        nngp = x[..., 0] @ y[..., 0].T
    return _start(nngp / channels, left, full)


def _own_gram(features: _Features, full: bool) -> tuple[Kernels, Kernels | None]:
    """Each input's covariances with itself, at equal positions and, if asked for, between all."""
    x, space = features.values, features.space
    channels = x.shape[1]
    at_equal = ((x * x).sum(1) / channels).reshape(len(x), *space)
    equal = replace(_start(at_equal, features, False), diagonal=True, same="all")
    if not full or not space:
        return equal, None
    all_pairs = (x.transpose(1, 2) @ x / channels).reshape(len(x), *space, *space)
    equal_positions(all_pairs, len(space)).copy_(at_equal)
    return equal, replace(_start(all_pairs, features, True), same="all")


def _start(nngp: Tensor, features: _Features, full: bool) -> Kernels:
    ntk = torch.zeros_like(nngp)
    return Kernels(nngp, ntk, features.values.shape[1], features.space, features.channel_axis, full=full)


def _lift(q: Tensor, k: Kernels, first: bool) -> Tensor:
    """Variances [*pairs, *positions] shaped to broadcast against the covariances of `k`."""
    if not k.full:
        return q
    axes = len(k.space)
    ones = [1] * axes
    pairs = q.shape[: q.ndim - axes]
    return q.reshape(*pairs, *k.space, *ones) if first else q.reshape(*pairs, *ones, *k.space)


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
