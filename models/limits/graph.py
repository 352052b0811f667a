"""The graph of kernel steps that a traced network is compiled to: branches, and what covariances each step needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from models.limits.registry import Role, Rule
from models.limits.state import Kernels, NoInfiniteWidthLimit
from models.limits.structural import added, merged

if TYPE_CHECKING:
    from models.limits.attention import Weights

NONE, EQUAL, FULL = 0, 1, 2  # covariances that are needed: none, at equal positions, between all


@dataclass(eq=False)
class Step:
    """One operation on kernels. `apply` is None for an input, whose features are those of `node`."""

    label: str  # path and type of what it does, for messages
    node: fx.Node
    apply: Callable[..., Kernels] | None
    args: tuple[Step, ...] = ()
    role: Role | None = None
    variances: bool = False
    mixes: bool = False
    equal: bool = False
    own: bool = False
    means: bool = False
    merges: bool = False  # averages concatenated branches for a layer
    function: Callable[[Tensor], Tensor] | None = None  # of an activation
    module: nn.Module | None = None  # where one layer of the network is all it does
    channels_last: bool = False  # of an input: how the layer that takes it reads its axes
    weights: Weights | None = None  # of attention
    ends: tuple[Step, ...] = ()  # steps whose random weights, or whose units, this one's result is a linear image of
    ancestors: frozenset[Step] = field(default_factory=frozenset)  # itself included

    def __post_init__(self) -> None:
        self.ancestors = frozenset([self]).union(*(arg.ancestors for arg in (*self.args, *self.reads)))
        if self.role == "linear" or (self.role is None and self.args):
            self.ends = tuple(dict.fromkeys(end for arg in self.args for end in arg.ends))
        else:
            self.ends = (self,)

    @property
    def reads(self) -> tuple[Step, ...]:
        """Steps of whose kernels only those of each input with itself are read."""
        return () if self.weights is None else self.weights.reads

    @property
    def centred(self) -> bool:
        """Has mean zero whatever happens in steps that it is no ancestor of."""
        return self.role == "layer"


def correlated(first: Step, second: Step) -> bool:
    """Whether two branches may have a covariance: then the kernel of the sum is not the sum of the kernels.

    Of two ends that are different layers with fresh weights of mean zero, one does not feed the other, so its weights
    average the product to zero; the same holds for such a layer and anything that it does not feed.
    """
    for one in first.ends:
        for two in second.ends:
            fresh = (one.centred and one not in two.ancestors) or (two.centred and two not in one.ancestors)
            if not fresh:
                return True
    return False


Streams = tuple[Step, ...]
"""Branches concatenated along the width; a single one where nothing is."""


def transform(
    rule: Rule, apply: Callable[..., Kernels], label: str, node: fx.Node, streams: Streams, **more: Any
) -> Streams:
    """One step for each stream, or one for all of them together, as the rule's role demands."""
    flags = {name: getattr(rule, name) for name in ("variances", "mixes", "equal", "own", "means")}

    def step(*args: Step) -> Step:
        return Step(label, node, apply, args, rule.role, **flags, **more)

    if rule.role == "layer":
        return (step(merge(streams, label, node)),)
    if len(streams) > 1 and rule.role == "other":
        raise NoInfiniteWidthLimit(
            f"{label} takes concatenated branches, which needs a rule of the role 'layer', 'linear' or 'activation'."
        )
    if rule.joint:
        joint = merge(streams, label, node)
        return tuple(step(stream, joint) for stream in streams)
    return tuple(step(stream) for stream in streams)


def merge(streams: Streams, label: str, node: fx.Node) -> Step:
    if len(streams) == 1:
        return streams[0]
    return Step(label, node, merged, streams, merges=True)


def add(first: Streams, second: Streams, label: str, node: fx.Node) -> Streams:
    """The sum of branches; raises NoInfiniteWidthLimit where they are correlated."""
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise NoInfiniteWidthLimit(f"{label} adds branches that are concatenated from different numbers of parts.")
    if len(first) != len(second):
        raise NoInfiniteWidthLimit(
            f"{label} adds a concatenation to something that is none: concatenate after the sum, or put a linear "
            "layer behind the concatenation."
        )
    for one in first:
        for two in second:
            if correlated(one, two):
                raise NoInfiniteWidthLimit(
                    f"{label} adds correlated branches, so their kernels do not add: end one branch in a linear or "
                    "convolutional layer of its own."
                )
    return tuple(Step(label, node, added, pair) for pair in zip(first, second, strict=True))


def reachable(output: Step) -> list[Step]:
    """All steps that the output depends on, arguments first."""
    order: dict[Step, None] = {}

    def visit(step: Step) -> None:
        stack = [(step, iter((*step.args, *step.reads)))]
        while stack:
            current, rest = stack[-1]
            argument = next((arg for arg in rest if arg not in order), None)
            if argument is None:
                order[current] = None
                stack.pop()
            else:
                stack.append((argument, iter((*argument.args, *argument.reads))))

    visit(output)
    return list(order)


def needs(steps: Sequence[Step], wanted: dict[Step, int]) -> dict[Step, int]:
    """What covariances each step must have so that those `wanted` are known: a backward pass."""
    found = {step: wanted.get(step, NONE) for step in steps}
    for step in reversed(steps):
        if found[step] == NONE:
            continue
        below = FULL if step.mixes else EQUAL if step.equal else found[step]
        for arg in step.args:
            found[arg] = max(found[arg], below)
    return found


def read_alone(steps: Sequence[Step]) -> dict[Step, int]:
    """The steps of which something reads covariances of each input with itself: its variances, or its logits."""
    found = {arg: EQUAL for step in steps if step.variances for arg in step.args}
    for step in steps:
        for arg in step.reads:
            found[arg] = FULL if step.weights is not None and step.weights.tied else max(found.get(arg, NONE), EQUAL)
    return found


def means_wanted(steps: Sequence[Step]) -> set[Step]:
    """The steps whose means something reads, or passes on to what reads them."""
    found: set[Step] = set()
    for step in reversed(steps):
        if step.means or (step in found and step.role not in ("layer", "activation")):
            found.update(step.args)
    return found
