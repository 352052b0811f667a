"""Watch a forward pass and find the calls through which each parameter acts.

A function mode sees every call that receives a parameter, whether a module or a function makes it. Scalar multiples
and rearrangements of a parameter are followed; a call that a rule knows (``rules.py``) is noted with its input, and
with the place in the autograd graph where the gradient of its output appears. It receives a detached copy of the
parameter, so that afterwards the graph leads to the parameter itself only through calls that no rule explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bench.ntk.products import LinearToInputs, by_onednn
from bench.ntk.rules import COMMUTE, MATCHERS, Match, Rule

_T: Any = torch.Tensor

# Calls that return all entries of a tensor, each once: a gradient's inner products do not see the order.
REARRANGE = {
    _T.t, _T.T.__get__, _T.mT.__get__, _T.transpose, torch.transpose, _T.permute, torch.permute, _T.swapaxes,
    _T.view, _T.reshape, torch.reshape, _T.flatten, torch.flatten, _T.unflatten, _T.view_as, _T.squeeze,
    _T.unsqueeze, torch.squeeze, torch.unsqueeze, torch.t, _T.movedim, torch.movedim, _T.contiguous, _T.clone,
    torch.clone,
}  # fmt: skip
MULTIPLY = {_T.mul, torch.mul, torch.multiply, _T.multiply}
DIVIDE = {_T.div, torch.div, _T.true_divide, torch.true_divide}
NEGATE = {_T.neg, torch.neg}


CHECKPOINTED = (
    "net recomputes activations (torch.utils.checkpoint), after the call that hands it its parameters: turn that off; "
    "memory bounds what the kernel takes."
)


@contextmanager
def no_recomputation() -> Iterator[None]:
    """For forward passes: their graph must keep all that it needs.

    Raises:
        ValueError: a network that says otherwise, by hooks on what autograd saves.
    """
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTED):
            yield
    except RuntimeError as error:
        if CHECKPOINTED in str(error):
            raise ValueError(CHECKPOINTED) from None
        raise


@dataclass(frozen=True)
class Use:
    """A parameter, or a multiple or rearrangement of it: its name, what it is multiplied with, its shape in use."""

    name: str
    scale: float = 1.0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Call:
    """A call that a rule knows. ``x``, ``out``: its input and the shape of its output, samples first; a parameter
    that is frozen, absent or left to another method is None. ``source``, ``edge``: where the gradients of its input and
    of its output appear (None: there is none)."""

    rule: Rule
    weight: Use | None
    bias: Use | None
    x: Tensor
    version: int
    out: torch.Size
    edge: GradientEdge | None
    source: GradientEdge | None

    @property
    def names(self) -> list[str]:
        return [use.name for use in (self.weight, self.bias) if use is not None]


class Watch(TorchFunctionMode):
    """Notes in ``calls`` what the ``params`` (name -> tensor) do, and in ``unexplained`` those that no rule follows.

    ``taps``: zeros to add to the calls' outputs, in their order; under ``vmap`` the gradient appears there instead.
    """

    def __init__(self, params: Mapping[str, Tensor], taps: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.unexplained: set[str] = set()
        self._uses = {id(tensor): Use(name) for name, tensor in params.items()}
        self._alive: list[Any] = list(params.values())  # an id is a name only while its tensor lives
        self._taps = taps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and _uses_batch_statistics(*args, **kwargs):
            raise ValueError("Batch normalisation in train mode makes samples interact: call net.eval().")
        found = self._found(args)
        if kwargs:
            found |= self._found(kwargs.values())
        if not found or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        match = _match(func, args, kwargs, found)
        if match is not None and match[1] is not None and id(match[1]) not in found:
            rule, x, weight, bias = match
            if found.keys() <= {id(weight), id(bias)} and weight is not bias:
                return self._call(rule, x, weight, bias, func, args, kwargs)
        out = func(*args, **kwargs)
        factor = _factor(func, args, kwargs, found)
        if factor is not None and isinstance(out, Tensor):
            (use,) = (self._uses[key] for key in found)
            self._uses[id(out)] = Use(use.name, use.scale * factor)
            self._alive.append(out)
        elif any(t.requires_grad for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)):
            self.unexplained |= {self._uses[key].name for key in found}
        return out

    def _found(self, values: Iterable[Any]) -> dict[int, Tensor]:
        """The watched tensors among a call's arguments, which may be lists of tensors."""
        found = {}
        for value in values:
            if id(value) in self._uses:
                found[id(value)] = value
            elif type(value) in (list, tuple):
                found |= {id(part): part for part in value if id(part) in self._uses}
        return found

    def _call(self, rule: Rule, x: Tensor, weight: Any, bias: Any, func: Any, args: Any, kwargs: Any) -> Tensor:
        # Under taps nothing needs a gradient but they.
        leaves = {} if self._taps is not None else {
            id(t): t.detach().requires_grad_() for t in (weight, bias) if id(t) in self._uses
        }  # fmt: skip
        out: Tensor
        if func is F.linear and self._taps is None and by_onednn(x, weight):
            out = LinearToInputs.apply(x, leaves.get(id(weight), weight), leaves.get(id(bias), bias))
        else:
            kwargs = {key: leaves.get(id(value), value) for key, value in kwargs.items()}
            out = func(*(leaves.get(id(value), value) for value in args), **kwargs)
        edge = source = None
        if self._taps is None:
            edge = get_gradient_edge(out)
            source = get_gradient_edge(x) if x.requires_grad else None
        else:
            out = out + self._taps[len(self.calls)]
        uses = self._use(weight), self._use(bias)
        self.calls.append(Call(rule, *uses, x.detach(), x._version, out.shape, edge, source))
        return out

    def _use(self, tensor: Any) -> Use | None:
        use = self._uses.get(id(tensor))
        return None if use is None else Use(use.name, use.scale, tensor.shape)


def _match(func: Any, args: Any, kwargs: Any, found: Mapping[int, Tensor]) -> Match:
    matcher = MATCHERS.get(func)
    if matcher is None:
        return None
    if func in COMMUTE and len(args) == 2 and id(args[0]) in found:
        args = (args[1], args[0])
    try:
        return matcher(*args, **kwargs)
    except TypeError:  # options that the rule does not know
        return None


def _factor(func: Any, args: Any, kwargs: Any, found: Mapping[int, Tensor]) -> float | None:
    """By what ``func`` multiplies the one parameter among its arguments; None: it does something else."""
    if len(found) != 1:
        return None
    if func in REARRANGE or (func is _T.__getitem__ and args[1] is None):
        return 1.0
    if func in NEGATE:
        return -1.0
    if (func in MULTIPLY or func in DIVIDE) and not kwargs and len(args) == 2:
        first, second = args
        if isinstance(second, int | float):
            return float(second) if func in MULTIPLY else 1 / float(second) if second else None
        if func in MULTIPLY and isinstance(first, int | float):
            return float(first)
    return None


def _uses_batch_statistics(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> bool:  # fmt: skip
    return training


def reached(output: Tensor, params: Mapping[str, Tensor]) -> set[str]:
    """The parameters (leaves) to which the autograd graph of ``output`` leads."""
    wanted = {id(tensor): name for name, tensor in params.items()}
    found: set[str] = set()
    seen: set[Node] = set()
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in wanted:
            found.add(wanted[id(variable)])
        stack += [child for child, _ in node.next_functions]
    return found
