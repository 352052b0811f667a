"""Kernels of each input with itself: variances, means and attention weights, which tiles of pairs read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from models.limits.attention import evaluate
from models.limits.elementwise import activate, mean_of
from models.limits.features import Features, lift, own_gram
from models.limits.graph import FULL, NONE, Step, means_wanted, needs, read_alone
from models.limits.products import alike, known_values
from models.limits.state import Kernels, NoInfiniteWidthLimit, equal_positions
from models.limits.trace import Program

LIVE = 12  # tensors of the size of one input's kernel alive at once, at most

Memos = dict[Step, dict[str, Any]]


@dataclass(frozen=True)
class Own:
    """Of n inputs, for the steps where anything reads it."""

    kernels: dict[Step, tuple[Tensor, Tensor]] = field(
        default_factory=dict
    )  # NNGP and NTK [n, *positions] at equal ones
    means: dict[Step, Tensor] = field(default_factory=dict)  # E[h] [n, *positions], of what is not centred
    mixings: dict[Step, Tensor] = field(default_factory=dict)  # weights of attention [n, to, from], or [1, to, from]
    weights_bytes: int = 0  # of one input's weights, where they were too large to be kept

    def nbytes(self) -> int:
        """What is kept of all inputs."""
        kept = [t for pair in self.kernels.values() for t in pair]
        return sum(t.nbytes for t in (*kept, *self.means.values(), *self.mixings.values()))


def own_kernels(
    program: Program, features: dict[Step, Features], x: Tensor, memos: Memos, memory: int, keep: int
) -> Own:
    """Everything that is read of inputs x [n, ...] alone.

    Where pooling comes before a nonlinearity, or attention, covariances between positions are needed on the way, of as
    many inputs at a time as `memory` bytes allow. Weights of attention that differ between inputs are left out where
    they take more than `keep` bytes.
    """
    levels = needs(program.steps, read_alone(program.steps))
    n = chunk = len(x)
    if FULL in levels.values():
        positions = max(math.prod(f.space) for f in features.values())
        chunk = max(1, min(n, int(memory / (2 * LIVE * x.element_size() * positions**2))))
    shared = {s: s.weights is not None and alike(program, s.weights) for s in program.steps}
    parts: list[Own] = []
    each = 0  # bytes
    for start in range(0, n, chunk):
        cut = slice(start, min(start + chunk, n))
        part = _Pass(program, levels, memos, x[cut]).run({s: f.rows(cut) for s, f in features.items()})
        each = sum(w[0].nbytes for s, w in part.mixings.items() if not shared[s])
        if each * n > keep:
            part = replace(part, mixings={s: w for s, w in part.mixings.items() if shared[s]})
        parts.append(part)
    first = parts[0]
    return Own(
        {s: (_cat([p.kernels[s][0] for p in parts]), _cat([p.kernels[s][1] for p in parts])) for s in first.kernels},
        {s: _cat([p.means[s] for p in parts]) for s in first.means},
        {s: w if shared[s] else _cat([p.mixings[s] for p in parts]) for s, w in first.mixings.items()},
        each if each * n > keep else 0,
    )


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def call(step: Step, args: list[Kernels]) -> Kernels:
    """A step's rule; and what it does to gains that are kept apart."""
    assert step.apply is not None
    try:
        if step.role == "activation":
            return activate(step.apply, step.function, args[0])
        if step.role == "layer":
            return replace(step.apply(*(k.with_gain(k.nngp) for k in args)), tied=False, mean=None)
        if step.mixes or step.role in (None, "other"):
            # Merging is for layers only, which are to come: not tied.
            tied = any(k.tied or (k.gain and not step.merges) for k in args)
            return replace(step.apply(*(k.with_gain(k.nngp) for k in args)), tied=tied)
        return step.apply(*args)
    except NoInfiniteWidthLimit as error:
        raise NoInfiniteWidthLimit(f"{step.label}: {error}.") from None


def _read_by(step: Step) -> tuple[Step, ...]:
    return (*step.args, *(step.weights.reads if step.weights is not None else ()))


class _Pass:
    """One pass over the steps with some inputs."""

    def __init__(self, program: Program, levels: dict[Step, int], memos: Memos, x: Tensor) -> None:
        self.program, self.levels, self.memos, self.x = program, levels, memos, x
        self.equal: dict[Step, Kernels] = {}
        self.full: dict[Step, Kernels] = {}
        self.mixings: dict[Step, Tensor] = {}
        self.with_means = means_wanted(program.steps)

    def run(self, features: dict[Step, Features]) -> Own:
        wanted = {s for s in self.program.steps if self.levels[s] != NONE}
        # Also what reads them: tables are set up here, and the diagonals of symmetric tiles come from here.
        wanted |= {
            s for s in self.program.steps if (s.variances or s.own or s.weights) and all(a in wanted for a in s.args)
        }
        last = {read: step for step in self.program.steps for read in (step, *_read_by(step))}
        for step in self.program.steps:
            if step.weights is not None:
                self.mixings[step] = self._weights(step)
            if step in wanted and step.apply is None:
                self.equal[step], full = own_gram(features[step], self.levels[step] == FULL)
                if full is not None:
                    self.full[step] = full
            elif step in wanted:
                self._take(step)
            for read in (step, *_read_by(step)):
                if last[read] is step:
                    self.full.pop(read, None)
        return Own(
            {step: (k.nngp, k.ntk) for step, k in self.equal.items()},
            {step: k.mean for step, k in self.equal.items() if k.mean is not None},
            self.mixings,
        )

    def _take(self, step: Step) -> None:
        if not step.mixes:
            args = [self._arg(step, self.equal[arg], arg) for arg in step.args]
            self.equal[step] = self._mean(step, args, call(step, args))
        if self.levels[step] != FULL and not step.mixes:
            return
        args = [self._arg(step, self._full(arg), arg) for arg in step.args]
        if step.mixes:
            k = self._mean(step, args, call(step, args))
        else:
            k = replace(call(step, [replace(arg, mean=None) for arg in args]), mean=self.equal[step].mean)
        if not step.mixes and (step.variances or step.own) and k.full:
            nngp, ntk = k.nngp.clone(), k.ntk.clone()
            equal_positions(nngp, len(k.space)).copy_(self.equal[step].nngp)
            equal_positions(ntk, len(k.space)).copy_(self.equal[step].ntk)
            k = replace(k, nngp=nngp, ntk=ntk)
        self.full[step] = k
        if step.mixes:
            own = k.at_equal_positions()  # a view, which would keep all of it
            self.equal[step] = replace(own, nngp=own.nngp.clone(), ntk=own.ntk.clone(), diagonal=True)

    def _mean(self, step: Step, args: list[Kernels], result: Kernels) -> Kernels:
        """The result with its mean, if anything asks for it and the rule has said what it does to means."""
        if step not in self.with_means or result.gaussian:
            return replace(result, mean=None)
        if step.role == "activation":
            mean, error = mean_of(step.function, args[0].nngp)
            memo = self.memos[step]
            memo["error"] = max(memo.get("error", 0.0), error)
            return replace(result, mean=mean)
        if step.role is None:  # sums and concatenations of branches, of our own
            return result
        # A rule that knows nothing of means returns the one it got.
        unsaid = result.mean is args[0].mean and result.nngp is not args[0].nngp
        return replace(result, mean=None) if unsaid else result

    def _full(self, arg: Step) -> Kernels:
        if arg in self.full:
            return self.full[arg]
        return replace(self.equal[arg], diagonal=False, same="all")

    def _arg(self, step: Step, k: Kernels, arg: Step) -> Kernels:
        variances = means = mixing = None
        if step.variances:
            q = self.equal[arg].nngp
            variances = lift(q, k, first=True), lift(q, k, first=False)
        mean = self.equal[arg].mean
        if step.means and mean is not None:
            means = lift(mean, k, first=True), lift(mean, k, first=False)
        if step.weights is not None:
            mixing = self.mixings[step], self.mixings[step]
        return replace(k, memo=self.memos[step], variances=variances, means=means, mixing=mixing)

    def _weights(self, step: Step) -> Tensor:
        weights = step.weights
        assert weights is not None
        values = known_values(self.program, weights, self.x, self._shape)
        try:
            if weights.queries is None or weights.keys is None:
                return evaluate(weights, self.program.call, values, None, None)
            found = [self._full(s) if weights.tied else self.equal[s] for s in (weights.queries, weights.keys)]
            return evaluate(weights, self.program.call, values, found[0], found[1])
        except NoInfiniteWidthLimit as error:
            raise NoInfiniteWidthLimit(f"{step.label}: {error}.") from None

    def _shape(self, step: Step) -> torch.Size | None:
        """Of what a step returns; None where no kernel of it is known here."""
        if step not in self.equal:
            return None
        k = self.equal[step]
        sizes = [k.units] if k.flat else list(k.space)
        if not k.flat:
            sizes.insert(k.channel_axis - 1, k.channels)
        return torch.Size([len(self.x), *sizes])
