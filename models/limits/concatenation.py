"""Tensors side by side along their units: each part keeps its own stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import fx

from models.limits.graph import Streams, transform
from models.limits.registry import Rule
from models.limits.state import Kernels, NoInfiniteWidthLimit

if TYPE_CHECKING:
    from models.limits.trace import Program

NAMES = ("cat", "concat", "concatenate")


def take(program: Program, node: fx.Node) -> None:
    """Find the streams of a call that concatenates."""
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(tensors, list | tuple) or not isinstance(dim, int) or dim not in (1, -1):
        raise NoInfiniteWidthLimit(
            f"{program.name(node)}: tensors may be concatenated along their units (axis 1) only."
        )
    parts = [_checked(program, node, arg, dim) for arg in _arguments(program, node, tensors)]
    program.streams[node] = tuple(step for part in parts for step in part)


def _arguments(program: Program, node: fx.Node, tensors: Any) -> Iterator[fx.Node]:
    for arg in tensors:
        if not isinstance(arg, fx.Node) or arg in program.constants:
            raise program.no_rule(node)
        yield arg


def _checked(program: Program, node: fx.Node, arg: fx.Node, dim: int) -> Streams:
    def check(k: Kernels) -> Kernels:
        axis = 1 if k.flat else k.channel_axis
        last = 1 if k.flat else 1 + len(k.space)
        if axis != dim % (last + 1):
            raise NoInfiniteWidthLimit("tensors may be concatenated along their units only")
        return k

    rule = Rule(check, "linear", variances=False)
    return transform(rule, check, program.name(node), node, program.materialise(arg))
