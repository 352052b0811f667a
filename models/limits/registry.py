"""The registry of rules: by module type (single dispatch) and by function or method name.

A user's own layer or function:

    @rule(MyLayer)
    def my_layer(module: MyLayer, k: Kernels) -> Kernels:
        return replace(k, nngp=..., ntk=...)

    @function_rule(my_function, "my_method")
    def my_function_rule(k: Kernels, *args) -> Kernels: ...

An activation needs no formula, only its name: `elementwise(MyActivation)` (models.limits.elementwise).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from models.limits.state import Kernels, NoInfiniteWidthLimit

ModuleRule = Callable[[Any, Kernels], Kernels]
FunctionRule = Callable[..., Kernels]
AnyModuleRule = TypeVar("AnyModuleRule", bound=ModuleRule)
AnyFunctionRule = TypeVar("AnyFunctionRule", bound=FunctionRule)

_FUNCTIONS: dict[Callable[..., Any] | str, FunctionRule] = {}


@singledispatch
def _apply(module: object, kernels: Kernels) -> Kernels:
    raise NoInfiniteWidthLimit(f"no rule for {type(module).__name__}")


def rule(*types: type[nn.Module]) -> Callable[[AnyModuleRule], AnyModuleRule]:
    """Decorator: the function maps (module, Kernels of its input) to the Kernels of its output, for these types."""

    def register(function: AnyModuleRule) -> AnyModuleRule:
        for module_type in types:
            _apply.register(module_type, function)
        return function

    return register


def function_rule(*functions: Callable[..., Any] | str) -> Callable[[AnyFunctionRule], AnyFunctionRule]:
    """Decorator: the rule for calls of these functions (or, by name, methods of tensors).

    The rule gets the call's arguments, Kernels in the place of tensors, and returns Kernels.
    """

    def register(function: AnyFunctionRule) -> AnyFunctionRule:
        for target in functions:
            _FUNCTIONS[target] = function
        return function

    return register


def module_rule(module: nn.Module) -> ModuleRule | None:
    """The rule for this module, or None. A subclass that overrides `forward` does not inherit its parent's."""
    if parametrize.is_parametrized(module):
        return None
    owner: Any = next(base for base in type(module).__mro__ if base in _apply.registry)
    if owner is object or type(module).forward is not owner.forward:
        return None
    return _apply.dispatch(type(module))


def rule_of_function(target: Callable[..., Any] | str) -> FunctionRule | None:
    """The rule for this function or method name, or None."""
    return _FUNCTIONS.get(target)
