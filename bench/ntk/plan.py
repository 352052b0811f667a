"""How each layer's share of the kernel is computed: found on a few samples, chosen by FLOPs, and explained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.ntk.channels import channelwise, read_out
from bench.ntk.method import Method
from bench.ntk.rules import Lookup, Size
from bench.ntk.watch import Call, Use, Watch, reached
from models.blocks import out_of_memory

Outputs = Literal["full", "trace", "sum"] | int
SYMMETRIC_WORK = 0.53125
"""Of the pairs of samples, in sixteen strips from the diagonal on."""
ELEMENTWISE = 16
"""What one multiply-and-add of an element-wise pass costs, in FLOPs of a matrix product."""


class Form(StrEnum):
    """What is kept of a layer for each sample."""

    PAIRS = "pairs"  # its inputs and output gradients: Gram matrices over positions
    GRADIENTS = "gradients"  # the gradients of its parameters, by its rule
    CHANNELS = "channels"  # the gradients of its filters that all outputs share: it is followed by a read-out
    SAMPLES = "samples"  # the same by torch.func, sample by sample: no rule knows how the parameter is used


@dataclass(frozen=True)
class Request:
    """A kernel that is wanted. ``params``: every parameter with a leading member axis; ``trained``: the names of those
    that count."""

    net: nn.Module
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    trained: tuple[str, ...]
    outputs: Outputs

    @property
    def members(self) -> int:
        return len(next(iter(self.params.values())))

    def member(self, index: int) -> dict[str, Tensor]:
        return {name: parameter[index] for name, parameter in self.params.items()}


@dataclass(frozen=True)
class Part:
    """The share of a call's weight and bias (or of one of them), or of a parameter that no rule knows (call None)."""

    module: str
    names: tuple[str, ...]
    call: int | None
    form: Form
    weight: Use | None = None
    bias: Use | None = None
    flops: float = 0.0
    bytes_per_sample: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """How the kernel is put together: print it.

    ``calls``: as seen on a ``probe`` of so many samples; ``c``: gradients a sample, of so many ``outputs``; ``full``:
    whether the kernel has all pairs of outputs; ``activations``: bytes a sample that a forward and its backward passes
    keep alive; ``passes``: FLOPs of the passes through the network; ``readout``: the call from which ``Form.CHANNELS``
    starts.
    """

    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    c: int
    outputs: int
    full: bool
    activations: float
    probe: int
    members: int
    passes: float
    readout: int | None = None
    method: Method = Method.LAYERWISE
    why: str = "asked for"

    @property
    def ruled(self) -> frozenset[str]:
        """Of all calls, be their parts in this plan or in another pass's."""
        return frozenset(name for call in self.calls for name in call.names)

    @property
    def sampled(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts if part.call is None for name in part.names)

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(part.module for part in self.parts))

    @property
    def bytes_per_sample(self) -> float:
        """Kept for each sample of one member."""
        return sum(part.bytes_per_sample for part in self.parts)

    def cost_from(self, first: int) -> float:
        """FLOPs of a sample's forward pass and of its backward passes to the output of the call ``first``."""
        work = [2 * size.positions * size.parameters if (size := _size(call)) else 0 for call in self.calls]
        return sum(work) + self.c * sum(work[first + 1 :])

    @property
    def flops(self) -> float:
        """Of all members' passes, per-sample gradients and Grams."""
        return self.members * (self.passes + sum(part.flops for part in self.parts))

    def __str__(self) -> str:
        rows = [("parameters", "form", "GFLOP", "bytes/sample", "because")]
        for part in self.parts:
            cells = f"{part.flops / 1e9:.3g}", f"{part.bytes_per_sample:.3g}", part.why
            rows.append((", ".join(part.names), str(part.form), *cells))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
        total = f"{self.flops / 1e9:.3g} GFLOP, {self.members} member(s)"
        return "\n".join([f"{self.method}: {total}; {self.why}", *lines])


class UnbatchedError(Exception):
    """Samples do not lie along the first axis of these parameters' calls."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = frozenset(names)


def make_plan(
    request: Request, x: Tensor, n1: int, n2: int | None, nested: bool, ruled: bool = True,
    exclude: frozenset[str] = frozenset(),
) -> Plan:  # fmt: skip
    """Watch the first samples of x [n, *shape] pass, and choose for a kernel [n1, n2] (n2 None: symmetric).

    Args:
        nested: the columns' samples are the first of the rows', and pass with them.
        ruled: False: every parameter's gradients sample by sample.
        exclude: parameters whose rules are known not to hold.

    Raises:
        ValueError: inputs that the net does not take, an output that is not [n, c], an output that does not exist, or
            samples that interact.
    """
    probe = next(size for size in (3, 5, 7) if size not in (n1, n2))
    few = x[:probe] if len(x) >= probe else x.repeat(math.ceil(probe / len(x)), *(1,) * (x.ndim - 1))[:probe]
    calls, unknown, output, activations = _watch(request, few)
    c = _gradients(request, output, probe)
    network = sum(2 * size.positions * size.parameters for size in map(_size, calls) if size is not None)
    sides = (n1, n2 or n1)
    pairs = sides[0] * sides[1] * (SYMMETRIC_WORK if n2 is None else 1.0)
    samples = n1 if nested else n1 + (n2 or 0)
    full = request.outputs == "full" and c > 1
    unknown |= exclude if ruled else set(request.trained)
    counts = Counter(name for call in calls for name in call.names)
    unknown |= {name for name, count in counts.items() if count > 1}
    unknown |= {name for call in calls for name in call.names if not _batched(call, probe)}
    kept = [k for k in (_without(call, unknown) for call in calls) if k is not None]
    price = _Price(c, full, pairs, samples, output.element_size())
    readout = read_out(output, kept) if c > 1 else None
    shared = frozenset() if readout is None else channelwise(kept, readout)
    parts = [part for i, call in enumerate(kept) for part in _parts(i, call, price, i in shared)]
    left = [name for name in request.trained if not any(name in part.names for part in parts)]
    parts += [_sampled(name, request, price, name in unknown) for name in left]
    passes = samples * (1 + c) * network * (bool(kept) + bool(left))
    order = {module: i for i, module in enumerate(dict.fromkeys(_module(name) for name in request.trained))}
    parts.sort(key=lambda part: order[part.module])
    alive = activations * (1 + c / 2)
    sizes = c, output.shape[1], full, alive, probe, request.members, passes
    return Plan(tuple(parts), tuple(kept), *sizes, readout)


def is_nested(x1: Tensor, x2: Tensor | None) -> bool:
    """Whether x2 is the first samples of x1, so that what is made of the rows is there for the columns: of a kernel
    between all points and those trained on. One look at the data a kernel; a meta tensor has none."""
    if x2 is None or len(x2) > len(x1) or x1.is_meta:
        return False
    return torch.equal(x1[: len(x2)], x2)


def choose(request: Request, x1: Tensor, x2: Tensor | None, method: Method) -> Plan:
    """The plan of a method; "auto": by rules, unless the pass for what they leave costs more than they save."""
    shape = len(x1), None if x2 is None else len(x2), is_nested(x1, x2)
    if method in (Method.JACOBIAN, Method.MATRIX_FREE):
        return replace(make_plan(request, x1, *shape, ruled=False), method=method)
    ruled = make_plan(request, x1, *shape)
    if method is Method.LAYERWISE:
        return ruled
    if not ruled.sampled:
        return replace(ruled, why="rules hold for every parameter")
    sampled = make_plan(request, x1, *shape, ruled=False)
    compared = f"{ruled.flops / 1e9:.3g} GFLOP by rules and {sampled.flops / 1e9:.3g} without"
    if ruled.flops <= sampled.flops:
        return replace(ruled, why=compared)
    return replace(sampled, method=Method.JACOBIAN, why=compared)


def _watch(request: Request, x: Tensor) -> tuple[list[Call], set[str], Tensor, float]:
    leaves = {name: request.params[name][0].detach().requires_grad_() for name in request.trained}
    values = {**request.buffers, **request.member(0), **leaves}
    saved = _Saved(len(x))
    hooks = torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor)
    before = torch.get_rng_state()
    with torch.enable_grad(), hooks, Watch(leaves) as watch:
        try:
            output = functional_call(request.net, values, (x,))
        except (RuntimeError, IndexError) as error:
            if out_of_memory(error):
                raise
            shape = ", ".join(["n", *map(str, x.shape[1:])])
            raise ValueError(f"net does not take inputs [{shape}] of {x.dtype}: {_line(error)}.") from error
    if not torch.equal(before, torch.get_rng_state()):
        raise ValueError("net draws random numbers when it is called: call net.eval().")
    unknown = watch.unexplained | reached(output, leaves) if isinstance(output, Tensor) else set()
    unknown |= {name for call in watch.calls if call.x._version != call.version for name in call.names}
    most = max((math.prod(call.out) + call.x.numel() for call in watch.calls), default=x.numel())
    gradients = sum(math.prod(call.out) for call in watch.calls)
    activations = saved.bytes + output.element_size() * (gradients + 4 * most) if isinstance(output, Tensor) else 0
    return watch.calls, unknown, output, activations / len(x)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class _Saved:
    """Adds up the bytes that autograd keeps of tensors with a sample axis."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.bytes = 0
        self._seen: set[int] = set()

    def __call__(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if tensor.ndim and tensor.shape[0] == self.samples and key not in self._seen:
            self._seen.add(key)
            self.bytes += tensor.nbytes
        return tensor.detach()  # a node that holds its own output, with its graph, is never freed


def _gradients(request: Request, output: Tensor, samples: int) -> int:
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != samples:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"net must map [n, *shape] to [n, c]; {samples} samples gave {shape}.")
    c = output.shape[1]
    if isinstance(request.outputs, int) and not -c <= request.outputs < c:
        raise ValueError(f"outputs must be below {c}, the number of outputs of net, not {request.outputs}.")
    return c if request.outputs in ("full", "trace") else 1


def _batched(call: Call, samples: int) -> bool:
    return call.x.ndim > 0 and call.x.shape[0] == samples and call.out[:1] == (samples,)


def _without(call: Call, names: set[str]) -> Call | None:
    weight = None if call.weight is None or call.weight.name in names else call.weight
    bias = None if call.bias is None or call.bias.name in names else call.bias
    if weight is None and bias is None:
        return None
    return Call(call.rule, weight, bias, call.x, call.version, call.out, call.edge, call.source)


def _size(call: Call) -> Size | None:
    return None if call.weight is None else call.rule.size(call.x.shape, call.out, call.weight.shape)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


@dataclass(frozen=True)
class _Price:
    c: int
    full: bool
    pairs: float
    samples: int
    itemsize: int

    @property
    def outputs(self) -> int:
        """Output gradients that meet in one pair of samples."""
        return self.c**2 if self.full else self.c

    def gradients(self, size: Size) -> float:
        form = 2 * self.samples * self.c * size.positions * size.parameters
        return form + 2 * self.pairs * self.outputs * size.parameters

    def channels(self, size: Size) -> float:
        pairs = self.pairs * (size.parameters + size.q * self.outputs)
        return 2 * (self.samples * size.positions * size.parameters + pairs)

    def factors(self, size: Size, lookup: bool) -> float:
        inputs = ELEMENTWISE / 2 if lookup else 2 * size.p
        kernel = self.c**2 if self.full else 1
        pair = inputs + 2 * self.outputs * size.q + ELEMENTWISE * kernel
        return self.pairs * size.positions**2 * size.groups * pair


def _parts(index: int, call: Call, price: _Price, shared: bool) -> Iterator[Part]:
    names = {use.name: use for use in (call.weight, call.bias) if use is not None}
    together = len({_module(name) for name in names}) == 1
    for use in names.values():
        weight = call.weight if together or use is call.weight else None
        bias = call.bias if together or use is call.bias else None
        yield _part(index, call, weight, bias, price, shared)
        if together:
            return


def _part(index: int, call: Call, weight: Use | None, bias: Use | None, price: _Price, shared: bool) -> Part:
    uses = [use for use in (weight, bias) if use is not None]
    module, names = _module(uses[0].name), tuple(use.name for use in uses)
    samples = call.x.shape[0]
    output = math.prod(call.out) // samples
    size = None if weight is None else _size(call)
    if size is None:
        entries = sum(math.prod(use.shape) for use in uses)
        flops = 2 * price.outputs * price.pairs * entries + price.samples * price.c * output * 2
        bytes_ = price.itemsize * price.c * entries
        return Part(module, names, index, Form.GRADIENTS, weight, bias, flops, bytes_, "as small as its output")
    lookup = isinstance(call.rule, Lookup)
    gradients, factors = price.gradients(size), price.factors(size, lookup)
    count = size.positions * size.groups
    if factors <= gradients:
        bytes_ = price.itemsize * count * (price.c * size.q + (0 if lookup else size.p)) + 8 * count * lookup
        why = "one position" if size.positions == 1 else f"{factors / gradients:.2g} of the gradients' FLOPs"
        return Part(module, names, index, Form.PAIRS, weight, bias, factors, bytes_, why)
    entries = size.parameters + (0 if bias is None else size.q * size.groups)
    if shared and (channels := price.channels(size)) < gradients:
        why = f"{channels / gradients:.2g} of the gradients' FLOPs: channels meet only in the read-out"
        return Part(module, names, index, Form.CHANNELS, weight, bias, channels, price.itemsize * entries, why)
    bytes_ = price.itemsize * price.c * entries
    why = f"{gradients / factors:.2g} of the pairs' FLOPs ({size.positions} positions)"
    return Part(module, names, index, Form.GRADIENTS, weight, bias, gradients, bytes_, why)


def _sampled(name: str, request: Request, price: _Price, unknown: bool) -> Part:
    entries = request.params[name][0].numel()
    flops = 2 * price.pairs * price.outputs * entries
    why = "no rule for how it is used" if unknown else "not used"
    return Part(
        _module(name), (name,), None, Form.SAMPLES, flops=flops,
        bytes_per_sample=price.itemsize * price.c * entries, why=why,
    )  # fmt: skip
