"""Convolutions whose channels z_q meet only in the read-out: f_k = sum_q R[k, q] a_q(z_q) + b_k.

Activations, normalisation, sums and pooling between the last convolutions and a linear read-out act on each channel by
itself. The gradient of f_k with respect to z_q is then R[k, q] times that of a_q, one for all outputs k:

    K_kl(x, x') = sum_q R[k, q] R[l, q] (G_q . G'_q), G_q the gradient of a_q with respect to the filter of z_q.

One backward pass, one gradient of the filters and one Gram matrix serve all outputs, where each had its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.autograd.graph import Node

from bench.ntk.rules import Convolution, Dense
from bench.ntk.watch import Call

# Nodes of the autograd graph by what they do with a tensor [samples, channels, ...].
ELEMENTWISE = {
    "ReluBackward0", "LeakyReluBackward0", "EluBackward0", "GeluBackward0", "SiluBackward0", "SoftplusBackward0",
    "TanhBackward0", "SigmoidBackward0", "ErfBackward0", "AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0",
    "CloneBackward0", "NativeBatchNormBackward0", "CudnnBatchNormBackward0",
}  # fmt: skip
POOLING = {
    "AvgPool2DBackward0", "AdaptiveAvgPool2DBackward0", "MaxPool2DWithIndicesBackward0",
    "AdaptiveMaxPool2DBackward0",
}  # fmt: skip
RESHAPE = {"ViewBackward0", "UnsafeViewBackward0", "SqueezeBackward1", "SqueezeBackward2"}
REDUCE = {"MeanBackward1", "SumBackward1"}


def read_out(output: Tensor, calls: Sequence[Call]) -> int | None:
    """The linear call, of one position, that makes the network's output [n, c]."""
    for index, call in enumerate(calls):
        single = isinstance(call.rule, Dense) and call.x.ndim == 2 and call.source is not None
        if single and call.edge is not None and call.edge.node is output.grad_fn:
            return index
    return None


def channelwise(calls: Sequence[Call], index: int) -> frozenset[int]:
    """Which of the calls are convolutions whose channels meet only in the read-out ``calls[index]``."""
    last = calls[index]
    assert last.source is not None
    assert last.edge is not None
    top: Node = last.source.node
    shape = tuple(last.x.shape)
    passed: set[Node] = set()
    beyond = {node for node, _ in last.edge.node.next_functions if node is not None and node is not top}
    stack = [top]
    while stack:
        node = stack.pop()
        if node in passed or node in beyond:
            continue
        below = [child for child, _ in node.next_functions if child is not None]
        if _shape(node)[:2] == shape and all(_keeps_channels(node, child, shape) for child in below):
            passed.add(node)
            stack += below
        else:
            beyond.add(node)
    return frozenset(i for i, call in enumerate(calls) if _reached(call, beyond, shape))


def _reached(call: Call, beyond: set[Node], shape: tuple[int, ...]) -> bool:
    if not isinstance(call.rule, Convolution) or call.rule.groups > 1 or call.edge is None:
        return False
    node = call.edge.node
    return node in beyond and call.out[:2] == shape and not _leads(beyond - {node}, node)


def _keeps_channels(node: Node, child: Node, shape: tuple[int, ...]) -> bool:
    """Whether channel q of the node's output depends on channel q of the child's only, sample by sample; parameters,
    of which nothing depends on the input, may be anything."""
    name, own, below = node.name(), _shape(node), _shape(child)
    if child.name().endswith("AccumulateGrad"):
        return name in ELEMENTWISE
    if below[:2] != shape:
        return False
    if name in ELEMENTWISE:
        return len(own) == len(below)
    if name in POOLING:
        return len(own) == len(below) == 4
    if name in REDUCE:
        summed = [dim - 2**64 if dim >= 2**63 else dim for dim in node._saved_dim]  # type: ignore[attr-defined]
        return bool(summed) and all(dim % len(below) > 1 for dim in summed)
    return name in RESHAPE


def _leads(starts: Iterable[Node], target: Node) -> bool:
    seen: set[Node] = set()
    stack = list(starts)
    while stack:
        node = stack.pop()
        if node is target:
            return True
        if node not in seen:
            seen.add(node)
            stack += [child for child, _ in node.next_functions if child is not None]
    return False


def _shape(node: Node) -> tuple[int, ...]:
    metadata = node._input_metadata
    return tuple(metadata[0].shape) if metadata else ()
