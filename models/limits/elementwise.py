"""Rules of activations without a closed form here, and the one line that adds a user's own.

    @elementwise
    class Wiggle(nn.Module): ...

    elementwise_function(my_function)

The activation must act on each entry alone, have no parameters of its own, and be smooth away from 0 (a kink or a
jump at 0 is fine). Whether it is smooth is measured: a quadrature that does not converge is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.limits.nested import Nested, nested, pair_maps
from models.limits.piecewise import ERROR, Pieces, dual, pieces
from models.limits.quadrature import RADIUS, DualTable, Phi, bends, dual_table, known_breaks, single_maps, with_slope
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit

log = logging.getLogger(__name__)
AnyModule = TypeVar("AnyModule", bound=type[nn.Module])


def elementwise(module_type: AnyModule) -> AnyModule:
    """Register an activation module; its limit is found by quadrature of its `forward`. Returns the type."""
    rule(module_type, role="activation")(_module)
    return module_type


def elementwise_function(*functions: Callable[..., Any] | str) -> None:
    """Register activation functions (or methods of tensors, by name), called with a tensor and constants."""
    for function in functions:
        function_rule(function, role="activation")(_function(function))


def require_gaussian(k: Kernels) -> None:
    """Refuse an activation of anything but a Gaussian process."""
    if not k.gaussian:
        raise NoInfiniteWidthLimit(
            "an activation must follow a layer with random weights, whose outputs are Gaussian: put a layer, "
            "or normalise, before it; activations that follow each other are understood as one"
        )


def by_quadrature(phi: Phi, k: Kernels) -> Kernels:
    """The limit of any elementwise activation; the diagonal, which comes first, sets up the table for the tiles."""
    require_gaussian(k)
    if k.diagonal and k.nngp.is_meta:  # no values: any table has the shapes and devices
        k.memo["plan"] = dual_table(torch.tanh, 1.0, 1.02, torch.device("cpu"))
        return replace(k, gaussian=False)
    if k.diagonal:
        s = k.nngp.clamp_min(0).sqrt()
        _prepare(phi, s, k.memo)
    plan = k.memo["plan"]
    if isinstance(plan, Pieces):
        nngp, slope = dual(plan, k.angle()[0], k.nngp, k.q1, k.q2)
    elif k.diagonal:
        (nngp, slope), error = single_maps(phi, s)
        k.memo["error"] = max(error, k.memo["error"])
    elif isinstance(plan, Nested):
        nngp, slope = pair_maps(phi, k.q1.sqrt(), k.q2.sqrt(), k.angle()[0], plan)
    else:
        s1, s2, angles, back = _outer(k, k.angle()[0])
        nngp, slope = (back(t) for t in plan(s1, s2, angles))
    return replace(k, nngp=nngp, ntk=slope * k.ntk, gaussian=False)


def _prepare(phi: Phi, s: Tensor, memo: dict[str, Any]) -> None:
    """How to find the dual maps for deviations s, besides those known: `plan`, and the largest error of all.

    Straight pieces where phi is made of them and bends away from 0, nodes for every pair where it has other kinks
    there and deviations differ, a table otherwise.
    """
    low, high = (float(end) for end in torch.aminmax(s))
    known_low, known_high = memo.get("range", (low, high))
    low, high = memo["range"] = min(low, known_low), max(high, known_high)
    plan = memo.get("plan")
    if isinstance(plan, Nested) and plan.low <= low and high <= plan.high:
        return
    breaks = known_breaks(phi, high, s.device)
    if breaks != [0.0]:
        straight = pieces(phi, breaks, RADIUS * high, s.device)
        if straight is not None:
            memo["plan"], memo["error"] = straight, ERROR
            return
    if breaks != [0.0] and high - low > 64 * torch.finfo(s.dtype).eps * high:
        memo["plan"] = nested(phi, low, high, s.device)
    else:
        try:
            memo["plan"] = _covering(plan if isinstance(plan, DualTable) else None, phi, s)
        except NoInfiniteWidthLimit:  # no table follows it: inputs far larger than the scale on which phi varies
            points = bends(phi, high, s.device)
            if points is None:
                raise
            log.warning("Inputs far larger than the activation's scale take milliseconds a pair; smaller ones less.")
            memo["plan"] = nested(phi, low, high, s.device, points)
    memo["error"] = max(memo.get("error", 0.0), memo["plan"].error)


def activate(apply: Callable[[Kernels], Kernels], phi: Phi | None, k: Kernels) -> Kernels:
    """An activation's rule; where its input has trained gains g, h = g u, they add E[u phi'(u) u' phi'(u')]."""
    if k.tied:
        raise NoInfiniteWidthLimit(
            "a trained gain must be followed by an activation or a layer, not by pooling or a sum: freeze the gain"
        )
    result = _at_zero(apply(replace(k, gain=0, gain_each=False)), phi, k)
    if not k.gain:
        return result
    assert phi is not None

    def scaling(z: Tensor) -> Tensor:
        return z * with_slope(phi, z)[1]

    if homogeneous(phi):
        return replace(result, gain=k.gain, gain_each=k.gain_each).with_gain(result.nngp)
    memo = k.memo.setdefault("gain", {})
    extra = by_quadrature(scaling, replace(k, memo=memo, ntk=torch.zeros_like(k.nngp)))
    k.memo["error"] = max(k.memo.get("error", 0.0), memo.get("error", 0.0))
    return replace(result, gain=k.gain, gain_each=k.gain_each).with_gain(extra.nngp)


def _at_zero(result: Kernels, phi: Phi | None, k: Kernels) -> Kernels:
    """Exact kernels of inputs of variance 0, whose u is 0: a jump or a kink there is met, not averaged over."""
    if phi is None or k.nngp.is_meta:
        return result
    if k.diagonal:
        zero = k.nngp == 0
        if not bool(zero.any()):
            return result
        jump, bend = _irregular(phi)
        if not (jump or (bend and bool((k.ntk[zero] != 0).any()))):
            return result
        k.memo["zeros"] = True
        value, slope = (float(t) for t in with_slope(phi, torch.zeros((), dtype=torch.float64, device=k.nngp.device)))
        nngp = torch.where(zero, value**2, result.nngp)
        return replace(result, nngp=nngp, ntk=torch.where(zero, slope**2 * k.ntk, result.ntk))
    if not k.memo.get("zeros"):
        return result
    zero = (k.q1 == 0) | (k.q2 == 0)  # u or v is a number, so independent of the other
    (m1, d1), (m2, d2) = (single_maps(phi, q.clamp_min(0).sqrt(), squared=False)[0] for q in (k.q1, k.q2))
    nngp = torch.where(zero, m1 * m2, result.nngp)
    return replace(result, nngp=nngp, ntk=torch.where(zero, d1 * d2 * k.ntk, result.ntk))


def _irregular(phi: Phi) -> tuple[bool, bool]:
    """Whether phi jumps at 0, and whether its slope there, as autograd has it, is not that of both sides."""
    around = torch.tensor([-1e-30, 0.0, 1e-30], dtype=torch.float64)
    value, slope = with_slope(phi, around)
    return tuple(bool((t - t[1]).abs().max() > 1e-12 * (1 + t.abs().max())) for t in (value, slope))  # type: ignore[return-value]


def mean_of(phi: Phi | None, q: Tensor) -> tuple[Tensor, float]:
    """E[phi(u)] for u of variances q, and its relative error."""
    assert phi is not None
    s = q.clamp_min(0).sqrt()
    if q.is_meta:
        return s, 0.0
    if homogeneous(phi):
        ends = phi(torch.tensor([1.0, -1.0], dtype=torch.float64, device=q.device))
        return s * (float(ends.sum()) / math.sqrt(2 * math.pi)), 0.0
    means, error = single_maps(phi, s, squared=False)
    return means[0], error


def homogeneous(phi: Phi) -> bool:
    """Whether phi(a z) = a phi(z) for positive a, as ReLU: phi is z times its slope."""
    sample = torch.linspace(-3, 3, 32, dtype=torch.float64)
    return torch.allclose(sample * with_slope(phi, sample)[1], phi(sample.clone()).detach())


def _covering(table: DualTable | None, phi: Phi, s: Tensor) -> DualTable:
    """A table for all standard deviations s; the given one, where it covers them."""
    low, high = (float(end) for end in torch.aminmax(s))
    rounding = 64 * torch.finfo(s.dtype).eps
    if table is None:
        return dual_table(phi, low, high, s.device, same=rounding)
    known_low, known_high = table.spread
    if known_low * (1 - rounding) <= low and high <= known_high * (1 + rounding):
        return table
    # With a margin, so that the next inputs seldom need another one.
    return dual_table(phi, 0.8 * min(low, known_low), 1.25 * max(high, known_high), s.device)


def _outer(k: Kernels, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Deviations s1 [b, r], s2 [b, c] and angles [b, r, c] of all pairs; and the way back to the layout of theta."""
    axes, shape = len(k.space), theta.shape
    s1, s2 = k.q1.sqrt(), k.q2.sqrt()
    pairs = theta.ndim - axes * (2 if k.full else 1)
    if k.full:
        left, right = math.prod(shape[pairs : pairs + axes]), math.prod(shape[pairs + axes :])
        if pairs == 1:
            batched = theta.reshape(shape[0], left, right)
            return s1.reshape(shape[0], left), s2.reshape(shape[0], right), batched, lambda t: t.reshape(shape)
        r, c = shape[:2]
        angles = theta.reshape(r, c, left, right).transpose(1, 2).reshape(1, r * left, c * right)

        def from_pairs(t: Tensor) -> Tensor:
            return t.reshape(r, left, c, right).transpose(1, 2).reshape(shape)

        return s1.reshape(1, r * left), s2.reshape(1, c * right), angles, from_pairs
    r, c = shape[:2]
    angles = theta.reshape(r, c, -1).movedim(-1, 0)

    def from_positions(t: Tensor) -> Tensor:
        return t.movedim(0, -1).reshape(shape)

    return s1.reshape(r, -1).T, s2.reshape(c, -1).T, angles, from_positions


def _module(module: nn.Module, k: Kernels) -> Kernels:
    if next(module.parameters(), None) is not None:
        raise NoInfiniteWidthLimit("an elementwise activation must have no parameters")
    return by_quadrature(module, k)


def _function(function: Callable[..., Any] | str) -> Callable[..., Kernels]:
    def apply(k: Kernels, *args: Any, **kwargs: Any) -> Kernels:
        call = getattr(torch.Tensor, function) if isinstance(function, str) else function
        return by_quadrature(lambda z: call(z, *args, **kwargs), k)

    return apply


for _type in (
    *(nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid),
    *(nn.Tanhshrink, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold),
):
    rule(_type, role="activation")(_module)
