"""Element-wise calls of a traced network: chains and small graphs of one source become one activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from models.limits.elementwise import by_quadrature
from models.limits.registry import Rule
from models.limits.state import Kernels

_SUMS = {"add": 1.0, "iadd": 1.0, "add_": 1.0, "sub": -1.0, "isub": -1.0, "sub_": -1.0, "subtract": -1.0}
_PRODUCTS = ("mul", "imul", "mul_", "multiply")
_QUOTIENTS = ("truediv", "div", "itruediv", "div_", "divide", "true_divide")
# Calls that act on each entry alone, by name.
_NAMES = frozenset(
    "abs absolute acos arccos acosh asin arcsin asinh arcsinh atan arctan atan2 atanh ceil celu clamp clamp_ "  # noqa: SIM905 - a list of words
    "clamp_max clamp_min clip cos cosh elu eq erf erfc erfinv exp exp2 expit expm1 floor fmax fmin frac ge gelu gt "
    "hardshrink hardsigmoid hardswish hardtanh heaviside hermite_polynomial_h hermite_polynomial_he i0 le leaky_relu "
    "leaky_relu_ lerp log log1p log2 logaddexp logical_and logical_not logical_or logit logsigmoid lt maximum minimum "
    "mish ndtr ne neg neg_ negative pos positive pow pow_ ipow reciprocal relu relu_ relu6 round rsqrt selu sigmoid "
    "sigmoid_ sign sgn silu sin sinc sinh softplus softshrink softsign sqrt square tan tanh tanh_ tanhshrink threshold "
    "to type_as float double trunc where".split()
)


def name_of(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "").strip("_")


def elementwise_name(node: fx.Node, name: str) -> bool:
    """Whether a call acts on each entry alone: known by name, of torch, of Python's operators or of tensors."""
    if name == "getattr" and node.args[1] in ("dtype", "device"):  # as in (z > 0).to(z.dtype)
        return True
    if name not in _NAMES and name not in _SUMS and name not in _PRODUCTS and name not in _QUOTIENTS:
        return False
    module = getattr(node.target, "__module__", None) or ""
    return isinstance(node.target, str) or module.split(".")[0] in ("torch", "_operator", "operator", "builtins", "")


@dataclass(frozen=True)
class Pointwise:
    """An element-wise function of `source`: the calls that make it up, in order."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    factors: tuple[float | None, ...]  # of each call that only multiplies by a number
    chain: bool  # each call takes the one before it, and constants


@dataclass(frozen=True)
class Part:
    """One step of an activation: a multiplication by `factor`, or the function of some calls."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    factor: float | None

    @property
    def node(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def simple(self) -> bool:
        return len(self.nodes) == 1


def extend(source: fx.Node, below: Sequence[Pointwise], node: fx.Node, single: bool, factor: float | None) -> Pointwise:
    """One more call on top of element-wise functions of the same source."""
    known = {n: f for point in below for n, f in zip(point.nodes, point.factors, strict=True)}
    chain = (len(below) == 0 or (len(below) == 1 and below[0].chain)) and single
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    nodes = sorted(known, key=order.__getitem__)
    return Pointwise(source, (*nodes, node), (*(known[n] for n in nodes), factor), chain)


def parts(point: Pointwise) -> list[Part]:
    """A chain with one function among multiplications by numbers step by step, anything else as one function."""
    functions = sum(factor is None for factor in point.factors)
    if not point.chain or functions > 1:
        return [Part(point.source, point.nodes, None)]
    sources = (point.source, *point.nodes[:-1])
    return [Part(s, (n,), f) for s, n, f in zip(sources, point.nodes, point.factors, strict=True)]


def factor(node: fx.Node, name: str) -> float | None:
    """The number by which a call multiplies its tensor, if that is all it does."""
    if name in ("neg", "neg_", "negative"):
        return -1.0
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if name in _PRODUCTS and isinstance(second, int | float):
        return float(second)
    if name in _PRODUCTS and isinstance(first, int | float):
        return float(first)
    if name in _QUOTIENTS and isinstance(second, int | float):
        return 1.0 / second if second else None
    return None


def scalar_factor(
    node: fx.Node, before: fx.Node, call: Callable[..., Any], values: Mapping[fx.Node, Any]
) -> float | None:
    """The number by which a call multiplies `before`, if that is all it does; its other arguments are in `values`."""
    name = name_of(node.target)
    negative = name in ("neg", "neg_", "negative")
    if name not in _PRODUCTS and not negative and not (name in _QUOTIENTS and node.args[0] is before):
        return None
    if sum(arg is before for arg in node.args) != 1:
        return None
    result = call(node, {**values, before: torch.ones((), dtype=torch.float64)})
    return float(result) if result.numel() == 1 and not result.is_meta else None


def sum_of(node: fx.Node, name: str) -> tuple[float, float] | None:
    """The factors of the two tensors of a sum or difference; None for any other call."""
    if name not in _SUMS or len(node.all_input_nodes) != 2 or len(node.args) != 2:
        return None
    alpha = node.kwargs.get("alpha", 1)
    if set(node.kwargs) - {"alpha"} or not isinstance(alpha, int | float):
        return None
    return 1.0, _SUMS[name] * float(alpha)


def quadrature(function: Callable[[Tensor], Tensor]) -> tuple[Rule, Callable[..., Kernels]]:
    def apply(k: Kernels) -> Kernels:
        return by_quadrature(function, k)

    return Rule(apply, "activation"), apply
