"""The registry of rules: by module type (single dispatch) and by function or method name.

A user's own layer or function:

    @rule(MyLayer, role="layer")
    def my_layer(module: MyLayer, k: Kernels) -> Kernels:
        return replace(k, nngp=..., ntk=...)

    @function_rule(my_function, "my_method")
    def my_function_rule(k: Kernels, *args) -> Kernels: ...

`models.limits.check_rule` tests a rule against finite networks. An activation needs no formula at all, because what
is written with torch's element-wise functions is understood; one that cannot be traced needs only its name:
`elementwise(MyActivation)` (models.limits.elementwise).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from models.checks import check_choice
from models.limits.state import Kernels

Role = Literal["layer", "linear", "activation", "other"]
ROLES = ("layer", "linear", "activation", "other")
AnyRule = TypeVar("AnyRule", bound=Callable[..., Kernels])


@dataclass(frozen=True)
class Rule:
    """A rule and what the graph must know of it.

    role: "layer": sums over units with random weights of its own, of mean zero; "linear": linear, acts on each unit
        alone, without random weights (pooling, scaling, normalising); "activation": a function of each entry alone;
        "other": none of these, so that its result can be added to another only if that ends in a "layer".
    variances: reads q1 and q2, the kernels of each input with itself.
    mixes: reads covariances between different positions, as pooling does.
    equal: reads covariances at equal positions only, whatever is needed of its result.
    own: treats an input's covariance with itself differently, as dropout does.
    means: reads `means`, the mean over units of each input's features, as normalisation does.
    joint: acts on all units together, but not by a sum: gets the kernels of all units as its last argument.
    """

    apply: Callable[..., Kernels]
    role: Role = "other"
    variances: bool = True
    mixes: bool = False
    equal: bool = False
    own: bool = False
    means: bool = False
    joint: bool = False


_FUNCTIONS: dict[Callable[..., Any] | str, Rule] = {}


@singledispatch
def _registered(module: object) -> Rule | None:
    return None


def _make(apply: Callable[..., Kernels], role: Role, flags: dict[str, bool]) -> Rule:
    check_choice("role", role, ROLES)
    return Rule(apply, role, **{"variances": role in ("activation", "other"), **flags})


def rule(*types: type[nn.Module], role: Role = "other", **flags: bool) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the function maps (module, Kernels of its input) to the Kernels of its output, for these types.

    `role` and the flags variances, mixes, equal, own, means, joint: see `Rule`. ValueError for an unknown role.
    """

    def register(function: AnyRule) -> AnyRule:
        made = _make(function, role, flags)
        for module_type in types:
            _registered.register(module_type, lambda module: made)
        return function

    return register


def function_rule(
    *functions: Callable[..., Any] | str, role: Role = "other", **flags: bool
) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the rule for calls of these functions (or, by name, methods of tensors), as `rule`.

    The rule gets the call's arguments, Kernels in the place of the first tensor, and returns Kernels.
    """

    def register(function: AnyRule) -> AnyRule:
        for target in functions:
            _FUNCTIONS[target] = _make(function, role, flags)
        return function

    return register


def module_rule(module: nn.Module) -> Rule | None:
    """The rule for this module, or None. A subclass that overrides `forward` does not inherit its parent's."""
    if parametrize.is_parametrized(module):
        return None
    owner: Any = next(base for base in type(module).__mro__ if base in _registered.registry)
    if owner is object or type(module).forward is not owner.forward:
        return None
    return _registered(module)


def rule_of_function(target: Callable[..., Any] | str) -> Rule | None:
    """The rule for this function or method name, or None."""
    return _FUNCTIONS.get(target)
