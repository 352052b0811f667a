"""Self-attention in its 1 / d limit: weights that no longer fluctuate mix the positions of the values.

Logits q . k / d are averages over the d features of queries and keys: the layer's covariance where one layer gives
both, 0 where two independent ones do (Hron et al. 2020, section 3). So the softmax, or whatever else is done to them,
is a function A(x) of the input alone, and A(x) v has the kernels A(x) K(x, x') A(x')^T, of NNGP and NTK alike, because
the derivatives of the weights by any parameter are of order 1 / sqrt(d).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from models.limits.graph import Step
from models.limits.pointwise import scalar_factor
from models.limits.state import Kernels, NoInfiniteWidthLimit

PRODUCTS = ("matmul", "bmm")
FUSED = "scaled_dot_product_attention"

Call = Callable[[fx.Node, dict[fx.Node, Any]], Any]


@dataclass(frozen=True)
class Weights:
    """Calls that make weights [n, to, from] of the products of queries and keys; of constants where there are none."""

    start: fx.Node  # queries @ keys^T; or the weights themselves
    nodes: tuple[fx.Node, ...] = ()  # what is done to it, in order
    queries: Step | None = None
    keys: Step | None = None
    factor: float = 1.0  # of queries and keys, taken out of them
    fused: bool = False  # `start` is torch's function of queries, keys and values
    done: Callable[[Tensor], Tensor] | None = None  # all of it, in a module of ours

    @property
    def reads(self) -> tuple[Step, ...]:
        return tuple(dict.fromkeys(step for step in (self.queries, self.keys) if step is not None))

    @property
    def tied(self) -> bool:
        return self.queries is not None and self.queries is self.keys

    def extended(self, node: fx.Node) -> Weights:
        """One more call on top."""
        return replace(self, nodes=(*self.nodes, node))


def evaluate(
    weights: Weights, call: Call, values: Mapping[fx.Node, Any], queries: Kernels | None, keys: Kernels | None
) -> Tensor:
    """[n, to, from], or [1, to, from] where all samples have the same: the weights of inputs that these kernels are of.

    values: constants, features and sizes that the calls take. `queries` holds all covariances if `weights.tied`.
    """
    if queries is None or keys is None:
        known = values[weights.start]
        return known[None] if known.ndim == 2 else known
    for k in (queries, keys):
        if k.flat or len(k.space) != 1 or k.channel_axis != 2:
            raise NoInfiniteWidthLimit(
                "attention takes queries, keys and values [samples, positions, features], not "
                f"{k.positions()}{' flattened' if k.flat else ''} with features on axis {k.channel_axis}"
            )
    if queries.channels != keys.channels:
        raise NoInfiniteWidthLimit(f"queries have {queries.channels} features, but keys {keys.channels}")
    if weights.done is None:
        _settled(weights, call, values, queries.channels)
    if weights.tied:
        raw = queries.nngp * (queries.channels * weights.factor)
    else:
        raw = queries.nngp.new_zeros(1, queries.space[0], keys.space[0])
    return _checked(lambda products: _run(weights, call, values, products), raw)


def _run(weights: Weights, call: Call, values: Mapping[fx.Node, Any], products: Tensor) -> Tensor:
    if weights.done is not None:
        return weights.done(products)
    if weights.fused:
        return _fused(products, **_arguments(weights.start, values))
    found: dict[fx.Node, Any] = {**values, weights.start: products}
    result = products
    for node in weights.nodes:
        result = found[node] = call(node, found)
    return result


def _settled(weights: Weights, call: Call, values: Mapping[fx.Node, Any], features: int) -> None:
    """Refuse logits that keep fluctuating: products of d features vary by sqrt(d)."""
    scale = weights.factor
    if weights.fused:
        stated = _arguments(weights.start, values)["scale"]
        scale *= features**-0.5 if stated is None else float(stated)
    before = weights.start
    for node in weights.nodes:
        factor = scalar_factor(node, before, call, values)
        if factor is None:
            break
        scale, before = scale * factor, node
    if abs(scale) * math.sqrt(features) >= 1 - 1e-6:
        raise NoInfiniteWidthLimit(
            f"the attention weights stay random where products of queries and keys are scaled by {abs(scale):.3g}, as "
            f"1 / sqrt(d) or more: divide the products by their number of features, d = {features}"
        )


def _checked(run: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    """The weights, if they are those of each sample by itself."""
    weights = run(raw.clone())
    if not isinstance(weights, Tensor) or weights.ndim != 3 or len(weights) not in (1, len(raw)):
        raise NoInfiniteWidthLimit("attention weights must be [samples, positions, positions]")
    if not raw.is_meta and not torch.allclose(run(raw.clone())[:1], weights[:1]):
        raise NoInfiniteWidthLimit("attention weights must not be random: call .eval(), or leave the dropout out")
    if not raw.is_meta and len(raw) > 1 and not torch.allclose(run(raw[-1:].clone())[-1], weights[-1]):
        raise NoInfiniteWidthLimit("attention weights must be those of each sample alone, not of the batch")
    return weights


def _arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> dict[str, Any]:
    """What torch's scaled_dot_product_attention is told beside queries, keys and values."""
    names = ("attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs}
    known = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None}
    found = {name: map_arg(given.get(name, default), lambda arg: values[arg]) for name, default in known.items()}
    if found.pop("dropout_p"):
        raise NoInfiniteWidthLimit("attention weights must not be random: set dropout_p=0")
    return found


def _fused(products: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    logits = products * scale
    if is_causal:
        logits = logits.masked_fill(torch.ones_like(logits[0], dtype=torch.bool).triu(1), -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1)


def attend(k: Kernels, transposed: bool) -> Kernels:
    """A(x) v, for values [samples, positions, features]; `transposed`: v A(x), of [samples, features, positions]."""
    assert k.mixing is not None
    first, second = (w.mT if transposed else w for w in k.mixing)
    if k.flat or len(k.space) != 1 or k.channel_axis != (1 if transposed else 2) or first.shape[-1] != k.space[0]:
        raise NoInfiniteWidthLimit(
            f"attention weights over {first.shape[-1]} positions meet {k.positions()} with features on axis "
            f"{k.channel_axis}: values must be [samples, positions, features]"
        )
    nngp, ntk = (first @ t @ second.mT for t in (k.nngp, k.ntk))
    mean = None if k.mean is None else (first @ k.mean[..., None])[..., 0]
    return replace(k, nngp=nngp, ntk=ntk, mean=mean, space=(nngp.shape[-1],))
