"""From a module to its steps on kernels: torch.fx traces, and each call finds its rule here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.dropout import _DropoutNd

from models.attention import SelfAttention
from models.layers import Conv2d, Linear
from models.limits import concatenation, pointwise, products
from models.limits.attention import Weights
from models.limits.graph import Step, Streams, add, reachable, transform
from models.limits.pointwise import Pointwise
from models.limits.registry import Rule, module_rule, rule_of_function
from models.limits.state import Kernels, NoInfiniteWidthLimit
from models.limits.structural import FLATTEN_POSITIONS, positions_flattened, scaled

SIZES = ("size", "dim", "shape", "ndim")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, Linear | Conv2d | SelfAttention) or module_rule(m) is not None
        return ours or super().is_leaf_module(m, module_qualified_name)


class Program:
    """A traced module. Whatever comes before the first random layer runs as it is; from there on rules apply.

    Raises NoInfiniteWidthLimit at once for anything that has no rule.
    """

    def __init__(self, module: nn.Module) -> None:
        # A module that is itself one layer would otherwise be traced into.
        self.root = nn.Sequential(module)
        try:
            self.nodes = list(_Tracer().trace(self.root).nodes)
        except (fx.proxy.TraceError, TypeError, RuntimeError, NameError) as error:
            raise NoInfiniteWidthLimit(
                f"{type(module).__name__} cannot be traced ({error}): "
                "its forward must take one tensor and not branch on values or shapes."
            ) from None
        self.code = "; ".join(node.format_node() or "" for node in self.nodes)
        self.features: set[fx.Node] = set()  # functions of the input alone
        self.constants: dict[fx.Node, Any] = {}
        self.sizes: set[fx.Node] = set()
        self.points: dict[fx.Node, Pointwise] = {}
        self.streams: dict[fx.Node, Streams] = {}
        self._owners: dict[int, str] = {}
        self.weights: dict[fx.Node, Weights] = {}  # of attention
        for node in self.nodes:
            self._sort(node)
        self.steps = reachable(self.output)

    def inputs(self) -> list[Step]:
        """The steps that start from features of the input."""
        return [step for step in self.steps if step.apply is None]

    def values(self, x: Tensor) -> dict[fx.Node, Any]:
        """What the calls return that depend on x [n, ...] alone, or on nothing."""
        values: dict[fx.Node, Any] = dict(self.constants)
        # Operations in place must not reach the caller's inputs.
        values[self.input] = x.clone() if len(self.features) > 1 else x
        for node in self.nodes:
            if node in self.features and node is not self.input:
                values[node] = self.call(node, values)
        return values

    def run_features(self, x: Tensor) -> dict[Step, Tensor]:
        """The features of x [n, ...] that enter random layers, each [n, ...]."""
        values = self.values(x)
        found = {}
        for step in self.inputs():
            value = values[step.node]
            if not isinstance(value, Tensor) or not 2 <= value.ndim <= 4 or len(value) != len(x):
                shape = list(value.shape) if isinstance(value, Tensor) else value
                raise NoInfiniteWidthLimit(
                    f"{step.label} gets inputs of shape {shape}, but its limit is for [samples, features], or "
                    "[samples, channels, positions]: put torch.nn.Flatten(1) before it."
                )
            found[step] = value
        return found

    def name(self, node: fx.Node) -> str:
        """Path and type of what a node calls, for error messages."""
        if node.op == "call_module":
            path = str(node.target).partition(".")[2]
            kind = type(self.root.get_submodule(str(node.target))).__name__
            return f"{path!r} ({kind})" if path else f"{kind} (the network itself)"
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        stack = list(node.meta.get("nn_module_stack", {}))
        path = str(stack[-1]).partition(".")[2] if stack else ""
        return f"{target!r} in {path!r}" if path else repr(str(target))

    def _sort(self, node: fx.Node) -> None:
        if node.op == "placeholder":  # the only one: the root is an nn.Sequential
            self.input = node
            self.features.add(node)
        elif node.op == "get_attr":
            self.constants[node] = self._buffer(str(node.target))
        elif node.op == "output":
            self._sort_output(node)
        elif all(arg in self.constants for arg in node.all_input_nodes):
            self.constants[node] = self.call(node, self.constants)
        elif all(arg in self.features or arg in self.constants for arg in node.all_input_nodes) and self._runs(node):
            self.features.add(node)
            if self._is_size(node):
                self.sizes.add(node)
        else:
            self._compile(node)
            if not node.users and node not in self.sizes:
                raise NoInfiniteWidthLimit(
                    f"The result of {self.name(node)} is not used: drop the call, or use what it returns "
                    "(changes in place are not followed)."
                )

    def _sort_output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node):
            raise NoInfiniteWidthLimit("The network returns several values: it must return one tensor.")
        if result in self.weights:
            raise self.no_rule(result)
        if not self.known(result):
            raise NoInfiniteWidthLimit(
                "The network has no layer with random weights, so it has no infinite-width limit."
            )
        streams = self.materialise(result)
        if len(streams) > 1:
            raise NoInfiniteWidthLimit("The network returns a concatenation: end it in a linear layer.")
        self.output = streams[0]

    def known(self, node: fx.Node) -> bool:
        return node in self.streams or node in self.points

    def _is_size(self, node: fx.Node) -> bool:
        """Whether a call asks for sizes, or reckons with nothing else: x.shape, x.shape[0]."""
        if node.op == "call_module":
            return False
        name = pointwise.name_of(node.target)
        asks = (node.args[1] if name == "getattr" else name) in SIZES
        return asks or all(arg in self.sizes or arg in self.constants for arg in node.all_input_nodes)

    def _runs(self, node: fx.Node) -> bool:
        """Whether a call before the first random layer may run as it is: it holds no state and draws no numbers."""
        if node.op != "call_module":
            return getattr(node.target, "__name__", "") != "dropout"
        module = self.root.get_submodule(str(node.target))
        if isinstance(module, _DropoutNd):  # its rule looks at the mode when the limit is called
            return False
        return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())

    def _compile(self, node: fx.Node) -> None:
        """Find the steps of a call that has a random tensor, or a layer with weights, in it."""
        if node.op == "call_module":
            if any(arg in self.weights for arg in node.all_input_nodes):
                products.take(self, node, "")
            else:
                self._compile_module(node)
            return
        name = pointwise.name_of(node.target)
        if self._is_size(node):
            self.sizes.add(node)
        elif name == "getattr" and node.args[1] == "mT":
            turn, (source,) = rule_of_function("transpose"), node.all_input_nodes
            assert turn is not None
            apply = lambda k: turn.apply(k, -2, -1)  # noqa: E731
            self.streams[node] = transform(turn, apply, self.name(node), node, self.materialise(source))
        elif products.is_product(self, node, name):
            products.take(self, node, name)
        elif name in concatenation.NAMES:
            concatenation.take(self, node)
        elif not self._compile_pointwise(node, name):
            self._compile_function(node, name)

    def _compile_function(self, node: fx.Node, name: str) -> None:
        rule = rule_of_function(node.target)
        if name == "flatten" and (*node.args, 0)[1] == 2:
            rule = FLATTEN_POSITIONS
        tensors = [arg for arg in node.all_input_nodes if arg not in self.sizes]
        if rule is None or len(tensors) != 1 or node.args[0] is not tensors[0] or tensors[0] in self.constants:
            raise self.no_rule(node)
        args = map_arg(node.args[1:], lambda arg: -1)
        kwargs = map_arg(node.kwargs, lambda arg: -1)

        def apply(k: Kernels, *joint: Kernels) -> Kernels:
            extra = {"joint": joint[0]} if joint else {}
            return rule.apply(k, *args, **kwargs, **extra)

        self.streams[node] = transform(rule, apply, self.name(node), node, self.materialise(tensors[0]))

    def _compile_module(self, node: fx.Node) -> None:
        module = self.root.get_submodule(str(node.target))
        rule = module_rule(module)
        if isinstance(module, nn.MultiheadAttention):
            raise NoInfiniteWidthLimit(
                f"{self.name(node)} has no deterministic limit, as its softmax scales by 1 / sqrt(d), where the "
                "attention weights stay random: use models.attention.SelfAttention, which scales by 1 / d."
            )
        if rule is None and type(module) is not SelfAttention:
            raise NoInfiniteWidthLimit(
                f"No infinite-width rule for {self.name(node)}: replace it, or register a rule for its type "
                "with models.limits.rule."
            )
        self._own(node, module)
        if len(node.all_input_nodes) != 1 or len(node.args) != 1:
            raise self.no_rule(node)
        if rule is None:
            assert isinstance(module, SelfAttention)
            products.take_module(self, node, module)
            return
        if rule.role == "activation" and self.known(node.all_input_nodes[0]):
            self.points[node] = self._extend(node, [node.all_input_nodes[0]], None)
            return
        apply = _of_module(rule, module)
        if isinstance(module, nn.Flatten) and module.start_dim == 2:
            rule, apply = FLATTEN_POSITIONS, lambda k: positions_flattened(k, end_dim=module.end_dim)
        streams = self.materialise(node.all_input_nodes[0], channels_last=_reads_last_axis(module))
        self.streams[node] = transform(rule, apply, self.name(node), node, streams, module=module)

    def _compile_pointwise(self, node: fx.Node, name: str) -> bool:
        """Element-wise functions of one random source become one activation; sums of two, a sum of branches."""
        rule = rule_of_function(node.target)
        known = pointwise.elementwise_name(node, name) if rule is None else rule.role == "activation"
        if not known:
            return False
        tensors = [arg for arg in node.all_input_nodes if arg not in self.constants and arg not in self.sizes]
        if any(arg in self.sizes for arg in node.all_input_nodes) or not self._scalars(node):
            raise self.no_rule(node)
        sources = {self.source(arg) for arg in tensors}
        if len(sources) == 1:
            self.points[node] = self._extend(node, tensors, pointwise.factor(node, name))
            return True
        signs = pointwise.sum_of(node, name)
        if signs is None:
            raise NoInfiniteWidthLimit(
                f"{self.name(node)} combines different branches other than by a sum, and products of branches have "
                "no rule: write them as a sum, or as element-wise functions of one tensor."
            )
        branches = [self._scaled(node, arg, sign) for arg, sign in zip(tensors, signs, strict=True)]
        self.streams[node] = add(branches[0], branches[1], self.name(node), node)
        return True

    def _scalars(self, node: fx.Node) -> bool:
        constants = [self.constants[arg] for arg in node.all_input_nodes if arg in self.constants]
        return all(not isinstance(value, Tensor) or value.numel() == 1 for value in constants)

    def source(self, node: fx.Node) -> fx.Node:
        return self.points[node].source if node in self.points else node

    def _extend(self, node: fx.Node, tensors: list[fx.Node], factor: float | None) -> Pointwise:
        source = self.source(tensors[0])
        below = [self.points[arg] for arg in dict.fromkeys(tensors) if arg in self.points]
        return pointwise.extend(source, below, node, len(node.all_input_nodes) == 1, factor)

    def _scaled(self, node: fx.Node, arg: fx.Node, factor: float) -> Streams:
        streams = self.materialise(arg)
        if factor == 1:
            return streams
        rule = Rule(scaled, "linear", variances=False)
        return transform(rule, lambda k: scaled(k, factor), self.name(node), node, streams)

    def materialise(self, node: fx.Node, channels_last: bool = False) -> Streams:
        """The streams of a node: its features as an input, or its activation as a step."""
        if node in self.streams:
            return self.streams[node]
        if node in self.points:
            streams = self._activation(self.points[node])
        elif node in self.features:
            streams = (Step(self._consumer(node), node, None, channels_last=channels_last),)
        else:
            raise self.no_rule(node)
        self.streams[node] = streams
        return streams

    def _consumer(self, node: fx.Node) -> str:
        return self.name(next(iter(node.users)))

    def _activation(self, point: Pointwise) -> Streams:
        streams = self.materialise(point.source)
        for part in pointwise.parts(point):
            label = self.name(part.node)
            if part.factor is not None:
                streams = self._scaled_by(streams, part.factor, label, part.node)
                continue
            factor = None if part.simple and part.node.op == "call_module" else linear_factor(self._function(part))
            if factor is not None:
                streams = self._scaled_by(streams, factor, label, part.node)
                continue
            rule, apply = self._activation_rule(part)
            single = part.simple and part.node.op == "call_module"
            module = self.root.get_submodule(str(part.node.target)) if single else None
            function = self._function(part)
            streams = transform(rule, apply, label, part.node, streams, module=module, function=function)
        return streams

    def _scaled_by(self, streams: Streams, factor: float, label: str, node: fx.Node) -> Streams:
        rule = Rule(scaled, "linear", variances=False)
        return transform(rule, lambda k: scaled(k, factor), label, node, streams)

    def _activation_rule(self, part: pointwise.Part) -> tuple[Rule, Callable[..., Kernels]]:
        node = part.node
        if part.simple and node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            rule = module_rule(module)
            assert rule is not None
            return rule, _of_module(rule, module)
        rule = rule_of_function(node.target) if part.simple else None
        if rule is not None and node.args and node.args[0] is part.source and self._only_first_varies(node):
            args = map_arg(node.args[1:], lambda arg: self.constants[arg])
            kwargs = map_arg(node.kwargs, lambda arg: self.constants[arg])
            return rule, lambda k: rule.apply(k, *args, **kwargs)
        return pointwise.quadrature(self._function(part))

    def _only_first_varies(self, node: fx.Node) -> bool:
        return all(arg in self.constants or arg is node.args[0] for arg in node.all_input_nodes) and (
            node.args.count(node.args[0]) == 1
        )

    def _function(self, part: pointwise.Part) -> Callable[[Tensor], Tensor]:
        """The element-wise function that a part is, of the tensor that enters it."""
        last, start = part.node, part.source

        def function(z: Tensor) -> Tensor:
            values: dict[fx.Node, Any] = {**self.constants, start: z}
            for node in part.nodes:
                values[node] = self.call(node, values)
            return values[last]

        return function

    def no_rule(self, node: fx.Node) -> NoInfiniteWidthLimit:
        return NoInfiniteWidthLimit(
            f"No infinite-width rule for the call of {self.name(node)}: replace it by a module, or register a "
            "rule with models.limits.function_rule, or the module around it with models.limits.elementwise."
        )

    def _own(self, node: fx.Node, module: nn.Module) -> None:
        for parameter in module.parameters():
            if id(parameter) in self._owners:
                raise NoInfiniteWidthLimit(
                    f"{self.name(node)} shares its weights with {self._owners[id(parameter)]}: "
                    "the limit needs weights of its own for each call."
                )
        self._owners.update({id(parameter): self.name(node) for parameter in module.parameters()})

    def _buffer(self, path: str) -> Tensor:
        owner_path, _, name = path.rpartition(".")
        owner = self.root.get_submodule(owner_path)
        value = getattr(owner, name)
        if isinstance(value, nn.Parameter):
            kind = type(owner).__name__
            raise NoInfiniteWidthLimit(
                f"Parameter {name!r} of {kind} is used outside the layers that have a rule: "
                f"register a rule for {kind} with models.limits.rule."
            )
        return value

    def call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args = map_arg(node.args, lambda arg: values[arg])
        kwargs = map_arg(node.kwargs, lambda arg: values[arg])
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


def linear_factor(function: Callable[[Tensor], Tensor]) -> float | None:
    """The number that an element-wise function multiplies by, if that is all it does: z + z is 2 z."""
    z = torch.linspace(-3, 3, 32, dtype=torch.float64)
    try:
        values = function(z.clone()).detach()
    except (RuntimeError, TypeError):  # not of this dtype or device: no matter, then it is an activation
        return None
    if values.shape != z.shape or not values.is_floating_point():
        return None
    factor = float(values[-1] / 3)
    return factor if torch.allclose(values, factor * z, rtol=1e-14, atol=1e-14) else None


def _of_module(rule: Rule, module: nn.Module) -> Callable[..., Kernels]:
    return lambda *kernels: rule.apply(module, *kernels)


def _reads_last_axis(module: nn.Module) -> bool:
    return isinstance(module, Linear | nn.Linear | nn.LayerNorm)
