"""Matrix products of a traced network: those that attention is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from models.attention import SelfAttention
from models.layers import Linear
from models.limits.attention import FUSED, PRODUCTS, Weights, attend
from models.limits.graph import Step, Streams, correlated, transform
from models.limits.pointwise import name_of
from models.limits.registry import Rule
from models.limits.state import NoInfiniteWidthLimit
from models.limits.structural import affine, weighted

if TYPE_CHECKING:
    from models.limits.trace import Program

Shape = Callable[[Step], torch.Size | None]
"""The sizes of what a step returns, where they are known."""

LAYER = Rule(weighted, "layer", variances=False)
ATTEND = Rule(attend, "linear", variances=False, mixes=True)


def is_product(program: Program, node: fx.Node, name: str) -> bool:
    """Whether a call is a matrix product, or takes weights that come from one."""
    return name in PRODUCTS or name == FUSED or any(arg in program.weights for arg in node.all_input_nodes)


def take(program: Program, node: fx.Node, name: str) -> None:
    """Find what a call of `is_product` makes: weights of attention, or the values that they mix."""
    if name == FUSED:
        queries, keys, values = (*node.args, None, None, None)[:3]
        if not (isinstance(queries, fx.Node) and isinstance(keys, fx.Node) and isinstance(values, fx.Node)):
            raise program.no_rule(node)
        _mix(program, node, replace(_weights(program, node, queries, keys), fused=True), values, False)
        return
    if name not in PRODUCTS:
        _extend(program, node)
        return
    left, right = (*node.args, *node.kwargs.values(), None)[:2]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        raise program.no_rule(node)
    mixing = [_mixes(program, arg) for arg in (left, right)]
    if mixing[0] is not None and program.known(right):
        _mix(program, node, mixing[0], right, False)
    elif mixing[1] is not None and program.known(left):
        _mix(program, node, mixing[1], left, True)
    elif program.known(left) and program.known(right):
        keys, turned = _upright(right)
        queries, also = _upright(left)
        if not turned or also:
            raise NoInfiniteWidthLimit(
                f"{program.name(node)} multiplies branches, which has a limit only as queries @ keys.transpose(1, 2) "
                "of [samples, positions, features]."
            )
        program.weights[node] = _weights(program, node, queries, keys)
    else:
        raise program.no_rule(node)


def take_module(program: Program, node: fx.Node, module: SelfAttention) -> None:
    """Our layer in its parts; heads have the same limit."""
    label, source = program.name(node), program.materialise(node.all_input_nodes[0], channels_last=True)

    def layer(part: Linear, streams: Streams) -> Streams:
        return transform(LAYER, affine(part), label, node, streams, module=part)

    (queries,), values = layer(module.queries, source), layer(module.values, source)
    (keys,) = (queries,) if module.keys is None else layer(module.keys, source)
    features = module.features
    if features == module.heads:
        raise NoInfiniteWidthLimit(f"{label} has heads of one feature, whose logits stay random: use fewer heads.")
    weights = Weights(node, (), queries, keys, done=lambda products: torch.softmax(products / features, -1))
    mixed = transform(ATTEND, lambda k: attend(k, False), label, node, values, weights=weights)
    program.streams[node] = layer(module.output, mixed)


def _mixes(program: Program, node: fx.Node) -> Weights | None:
    """Weights that mix positions: from queries and keys, or known from the input alone."""
    if node in program.weights:
        return program.weights[node]
    return Weights(node) if node in program.constants or node in program.features else None


def _extend(program: Program, node: fx.Node) -> None:
    starts = {program.weights[arg].start for arg in node.all_input_nodes if arg in program.weights}
    others = [arg for arg in node.all_input_nodes if arg not in program.weights]
    if node.op == "call_module" and any(True for _ in program.root.get_submodule(str(node.target)).parameters()):
        raise NoInfiniteWidthLimit(f"{program.name(node)} takes attention weights: it must take the values they mix.")
    if len(starts) > 1 or any(program.known(arg) for arg in others):
        raise NoInfiniteWidthLimit(
            f"{program.name(node)} combines attention weights with something else than numbers, masks and values: "
            "keep them apart."
        )
    before = [program.weights[arg] for arg in node.all_input_nodes if arg in program.weights]
    nodes = {call: None for weights in before for call in weights.nodes}
    program.weights[node] = replace(before[0], nodes=tuple(sorted(nodes, key=program.nodes.index))).extended(node)


def _weights(program: Program, node: fx.Node, queries: fx.Node, keys: fx.Node) -> Weights:
    """Products of queries and keys that are one tensor, or independent."""
    factor = 1.0
    steps: list[Step] = []
    for arg in (queries, keys):
        if not program.known(arg):
            raise program.no_rule(node)
        point = program.points.get(arg)
        if point is not None and all(f is not None for f in point.factors):
            for f in point.factors:
                factor *= f or 0.0
            arg = point.source
        streams = program.materialise(arg)
        if len(streams) > 1:
            raise NoInfiniteWidthLimit(f"{program.name(node)} takes concatenated branches: put a linear layer behind.")
        steps.append(streams[0])
    if steps[0] is not steps[1] and correlated(steps[0], steps[1]):
        raise NoInfiniteWidthLimit(
            f"{program.name(node)}: queries and keys must be one tensor, or independent layers of their own."
        )
    return Weights(node, (), steps[0], steps[1], factor)


def _mix(program: Program, node: fx.Node, weights: Weights, values: fx.Node, transposed: bool) -> None:
    streams = program.materialise(values)
    program.streams[node] = transform(
        ATTEND, lambda k: attend(k, transposed), program.name(node), node, streams, weights=weights
    )


def _upright(node: fx.Node) -> tuple[fx.Node, bool]:
    """A tensor [n, a, b] without its transpositions of the last two axes, and whether their number was odd."""
    turned = False
    while _transposes(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node, turned = source, not turned
    return node, turned


def _transposes(node: fx.Node) -> bool:
    name = name_of(node.target)
    if name == "getattr":
        return node.args[1] == "mT"
    axes = node.args[1:]
    if len(axes) == 1 and isinstance(axes[0], tuple | list):
        axes = tuple(axes[0])
    if not all(isinstance(axis, int) for axis in axes):
        return False
    positive = [axis % 3 for axis in axes if isinstance(axis, int)]
    return (name in ("transpose", "swapaxes") and sorted(positive) == [1, 2]) or (
        name == "permute" and positive == [0, 2, 1]
    )


def alike(program: Program, weights: Weights) -> bool:
    """Whether attention has the same weights for all inputs."""
    return not weights.tied and not any(node in program.features for node in _inputs(weights))


def known_values(program: Program, weights: Weights, x: Tensor, shape: Shape) -> dict[fx.Node, Any]:
    """What the calls that make attention weights of x take besides each other: constants, features and sizes."""
    wanted = _inputs(weights)
    values = program.values(x) if any(node in program.features for node in wanted) else dict(program.constants)
    for node in wanted:
        _add_size(program, node, values, shape)
    return values


def _inputs(weights: Weights) -> list[fx.Node]:
    made = {weights.start, *weights.nodes}
    found = [arg for node in weights.nodes for arg in node.all_input_nodes if arg not in made]
    if weights.fused:
        found += [arg for arg in weights.start.all_input_nodes if arg not in weights.start.args[:3]]
    return list(dict.fromkeys([*found, *([] if weights.queries is not None else [weights.start])]))


def _add_size(program: Program, node: fx.Node, values: dict[fx.Node, Any], shape: Shape) -> None:
    if node in values:
        return
    if program.known(node):
        found = shape(program.materialise(program.source(node))[0])
        if found is None:
            raise program.no_rule(node)
        values[node] = _Shaped(found)
        return
    for arg in node.all_input_nodes:
        _add_size(program, arg, values, shape)
    values[node] = program.call(node, values)


class _Shaped:
    """Stands for a tensor on the way where only its sizes are asked."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]
