"""From a module to the list of calls between its input and its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.dropout import _DropoutNd

from models.layers import Conv2d, Linear
from models.limits.registry import module_rule, rule_of_function
from models.limits.state import Kernels, NoInfiniteWidthLimit


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, Linear | Conv2d) or module_rule(m) is not None
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
        except (fx.proxy.TraceError, TypeError) as error:
            raise NoInfiniteWidthLimit(
                f"{type(module).__name__} cannot be traced ({error}): "
                "its forward must take one tensor and not branch on values or shapes."
            ) from None
        self.features: set[fx.Node] = set()  # functions of the input alone
        self.steps: list[tuple[fx.Node, Callable[..., Kernels]]] = []
        self.constants: dict[fx.Node, Any] = {}
        self._owners: dict[int, str] = {}
        for node in self.nodes:
            self._sort(node)

    def run_features(self, x: Tensor) -> dict[fx.Node, Tensor]:
        """The features of x [n, ...] that enter random layers: each [n, features]."""
        values: dict[fx.Node, Any] = dict(self.constants)
        # Operations in place must not reach the caller's inputs.
        values[self.input] = x.clone() if len(self.features) > 1 else x
        for node in self.nodes:
            if node in self.features and node is not self.input:
                values[node] = self._call(node, values)
        used = {arg: node for node, _ in self.steps for arg in node.all_input_nodes if arg in self.features}
        for arg, node in used.items():
            if values[arg].ndim != 2 or len(values[arg]) != len(x):
                raise NoInfiniteWidthLimit(
                    f"{self.name(node)} gets inputs of shape {list(values[arg].shape)}, but its limit is for "
                    "[samples, features]: put torch.nn.Flatten(1) before it."
                )
        return {arg: values[arg] for arg in used}

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
            self.constants[node] = self._call(node, self.constants)
        elif all(arg in self.features or arg in self.constants for arg in node.all_input_nodes) and self._runs(node):
            self.features.add(node)
        else:
            self.steps.append((node, self._rule(node)))
            if not node.users:
                raise NoInfiniteWidthLimit(
                    f"The result of {self.name(node)} is not used: drop the call, or use what it returns "
                    "(changes in place are not followed)."
                )

    def _sort_output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node):
            raise NoInfiniteWidthLimit("The network returns several values: it must return one tensor.")
        if not self.steps or result in self.features or result in self.constants:
            raise NoInfiniteWidthLimit(
                "The network has no layer with random weights, so it has no infinite-width limit."
            )
        self.output = result

    def _runs(self, node: fx.Node) -> bool:
        """Whether a call before the first random layer may run as it is: it holds no state and draws no numbers."""
        if node.op != "call_module":
            return True
        module = self.root.get_submodule(str(node.target))
        if isinstance(module, _DropoutNd):  # its rule looks at the mode when the limit is called
            return False
        return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())

    def _rule(self, node: fx.Node) -> Callable[..., Kernels]:
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            found = module_rule(module)
            if found is None:
                raise NoInfiniteWidthLimit(
                    f"No infinite-width rule for {self.name(node)}: replace it, or register a rule for its type "
                    "with models.limits.rule."
                )
            self._own(node, module)
            return lambda *args: found(module, *args)
        function = rule_of_function(node.target)
        if function is None or any(arg in self.constants for arg in node.all_input_nodes):
            raise NoInfiniteWidthLimit(
                f"No infinite-width rule for the call of {self.name(node)}: replace it by a module, or register a "
                "rule with models.limits.function_rule, or the module around it with models.limits.elementwise."
            )
        return function

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

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args = map_arg(node.args, lambda arg: values[arg])
        kwargs = map_arg(node.kwargs, lambda arg: values[arg])
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)
