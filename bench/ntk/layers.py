"""One pass through the network: what is kept of every layer, for some samples and one or more members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from bench.ntk import jacobian
from bench.ntk.forms import Channels, Factors, Gradients, Kept
from bench.ntk.plan import Form, Part, Plan, Request, UnbatchedError
from bench.ntk.watch import Call, Watch, no_recomputation

Layers = list[list[Kept]]
"""For each part of the plan what is kept of it, in one or more pieces."""
_Found = dict[int, tuple[Tensor, Tensor]]


def layers(request: Request, plan: Plan, members: Sequence[int], x: Tensor, into: Layers | None = None) -> Layers:
    """What the plan keeps for the samples x [n, *shape]; several members pass together, by ``vmap``.

    ``into``: where it is to be put in the end; the large pieces are written there at once.

    Raises:
        UnbatchedError: parameters whose calls do not hold the samples along the first axis.
        ValueError: a net whose calls differ from those that the plan was made for.
    """
    kept: dict[int, list[Kept]] = {}
    needed = sorted({part.call for part in plan.parts if part.call is not None})
    if needed:
        # The plan saw that the first axis has the probe's size; only another size tells that it is the samples'.
        spare = len(x) == plan.probe
        batch = torch.cat([x, x[:1]]) if spare else x
        readout: Tensor | None = None
        if len(members) == 1:
            found, readout = _one(request, plan, members[0], batch, needed)
        else:
            found = _together(request, plan, members, batch, needed)
        for index, part in enumerate(plan.parts):
            if part.call is not None:
                x_in, D = (_drop_last(t, len(members)) if spare else t for t in found[part.call])
                places = None if into is None or len(members) > 1 else into[index]
                kept[index] = list(_keep(part, plan.calls[part.call], x_in, D, len(members), places, readout))
    if plan.sampled:
        by_name = _by_sample(request, plan, members, x)
        kept |= {i: [Gradients(by_name[part.names[0]], 1.0)] for i, part in enumerate(plan.parts) if part.call is None}
    return [kept[index] for index in range(len(plan.parts))]


def _one(
    request: Request, plan: Plan, member: int, x: Tensor, needed: Sequence[int]
) -> tuple[_Found, Tensor | None]:  # fmt: skip
    """Each needed call's input [n, ...] and output gradients [n, c, ...]; of ``Form.CHANNELS`` [n, 1, ...], which all
    outputs share, and then the read-out [c, q] besides."""
    values = {name: value.detach() for name, value in request.member(member).items()}
    with torch.enable_grad(), no_recomputation(), Watch({name: values[name] for name in plan.ruled}) as watch:
        output = functional_call(request.net, {**request.buffers, **values}, (x,))
    _check(watch.calls, plan, len(x))
    shared = sorted({part.call for part in plan.parts if part.form is Form.CHANNELS and part.call is not None})
    own = [index for index in needed if index not in shared]
    inputs = {index: watch.calls[index].x for index in needed}
    places = [watch.calls[index].edge for index in own]
    shapes = [(len(x), *plan.calls[index].out[1:]) for index in own]
    units: dict[int, Tensor] = {}
    if shared:
        assert plan.readout is not None
        last = watch.calls[plan.readout]
        found = torch.autograd.grad(
            (last.source,), [watch.calls[i].edge for i in shared], (torch.ones_like(last.x),), retain_graph=True
        )
        units = {index: D[:, None] for index, D in zip(shared, found, strict=True)}
        places.append(last.source)
        shapes.append(tuple(last.x.shape))
    del watch
    gradients = _backward(request, output, places, shapes, plan.c)
    readout = gradients.pop()[0] if shared else None  # the same for every sample
    return {i: (inputs[i], D) for i, D in {**dict(zip(own, gradients, strict=True)), **units}.items()}, readout


def _together(request: Request, plan: Plan, members: Sequence[int], x: Tensor, needed: Sequence[int]) -> _Found:
    """The same for several members: [m n, ...] and [m n, c, ...]."""
    shapes = [(len(members), len(x), *call.out[1:]) for call in plan.calls]
    dtype = next(iter(request.params.values())).dtype
    taps = [torch.zeros(shape, dtype=dtype, device=x.device).requires_grad_() for shape in shapes]

    def forward(values: dict[str, Tensor], taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with Watch({name: values[name] for name in plan.ruled}, taps) as watch:
            output = functional_call(request.net, {**request.buffers, **values}, (x,))
        _check(watch.calls, plan, len(x))
        return output, [call.x for call in watch.calls]

    values = {name: value.detach() for name, value in request.params.items()}
    if list(members) != list(range(request.members)):
        values = {name: value[list(members)] for name, value in values.items()}
    with torch.enable_grad(), no_recomputation():
        output, inputs = torch.vmap(forward)(values, taps)
    own = [taps[index] for index in needed]
    gradients = _backward(request, output, own, [shapes[index] for index in needed], plan.c, axis=2)
    sides = ((inputs[i].detach().flatten(0, 1), D.flatten(0, 1)) for i, D in zip(needed, gradients, strict=True))
    return dict(zip(needed, sides, strict=True))


def _check(calls: Sequence[Call], plan: Plan, n: int) -> None:
    if [call.names for call in calls] != [call.names for call in plan.calls]:
        raise ValueError(
            "net must make the same calls for all samples: its parameters' uses differ from batch to batch."
        )
    loose = [name for call in calls if call.out[:1] != (n,) or call.x.shape[:1] != (n,) for name in call.names]
    if loose:
        raise UnbatchedError(loose)


def _backward(
    request: Request, output: Tensor, places: Sequence, shapes: Sequence[tuple[int, ...]], c: int, axis: int = 1
) -> list[Tensor]:  # fmt: skip
    """Gradients of the wanted outputs at the places: [..., c, ...], with c at ``axis``."""
    if c == 1:
        return [D.unsqueeze(axis) for D in _gradient(output, _seed(request, output, 0), places, shapes, last=True)]
    gradients = [output.new_empty(*shape[:axis], c, *shape[axis:]) for shape in shapes]
    for k in range(c):
        for D, one in zip(
            gradients, _gradient(output, _seed(request, output, k), places, shapes, k == c - 1), strict=True
        ):
            D.select(axis, k).copy_(one)
    return gradients


def _seed(request: Request, output: Tensor, k: int) -> Tensor:
    """The combination of outputs whose gradient is wanted, the k-th."""
    if request.outputs == "sum":
        return torch.ones_like(output)
    seed = torch.zeros_like(output)
    seed[..., request.outputs if isinstance(request.outputs, int) else k] = 1
    return seed


def _gradient(
    output: Tensor, seed: Tensor, places: Sequence, shapes: Sequence[tuple[int, ...]], last: bool
) -> list[Tensor]:
    if not output.requires_grad:
        return [output.new_zeros(shape) for shape in shapes]
    # A number has no output gradient, for the shape of which torch would import sympy: half a second, once a process.
    found = torch.autograd.grad((output * seed).sum(), places, retain_graph=not last, allow_unused=True)
    return [output.new_zeros(shape) if D is None else D for D, shape in zip(found, shapes, strict=True)]


def _keep(
    part: Part, call: Call, x: Tensor, D: Tensor, members: int, places: list[Kept] | None,
    readout: Tensor | None,
) -> Iterator[Kept]:  # fmt: skip
    """x, D: samples of all members along the first axis."""
    weight, bias = part.weight, part.bias
    if weight is not None and part.form is Form.PAIRS:
        for both in call.rule.pairs(x, D, weight.shape):
            yield Factors(_split(members, both.h), _split(members, both.D), weight.scale, bias.scale if bias else 0.0)
        return
    if weight is not None:
        into = None if places is None else [place.tensors()[0][0].view(*D.shape[:2], -1) for place in places]
        for J in call.rule.gradients(x, D, weight.shape, into):
            yield _gradients(part, _split(members, J), weight.scale, readout)
    if bias is not None:
        yield _gradients(part, _split(members, call.rule.bias(D, bias.shape)), bias.scale, readout)


def _gradients(part: Part, J: Tensor, scale: float, readout: Tensor | None) -> Kept:
    """J [m, n, c, size], or [m, n, 1, size] where the outputs share it."""
    if part.form is not Form.CHANNELS:
        return Gradients(J, scale)
    assert readout is not None
    return Channels(J.reshape(*J.shape[:2], readout.shape[1], -1), readout, scale)


def _drop_last(tensor: Tensor, members: int) -> Tensor:
    return _split(members, tensor)[:, :-1].flatten(0, 1)


def _split(members: int, tensor: Tensor) -> Tensor:
    return tensor.unflatten(0, (members, -1))


def _by_sample(request: Request, plan: Plan, members: Sequence[int], x: Tensor) -> dict[str, Tensor]:
    """Parameter name -> gradients [m, n, c, size] of the parameters that no rule knows, by ``torch.func``."""
    (member,) = members
    values = request.member(member)
    own = {name: values[name] for name in plan.sampled}
    fixed = {**request.buffers, **{name: value for name, value in values.items() if name not in own}}

    def select(output: Tensor) -> Tensor:
        if request.outputs == "sum":
            return output.sum(-1)
        return output[request.outputs] if isinstance(request.outputs, int) else output

    scalar = request.outputs == "sum" or isinstance(request.outputs, int)
    found = jacobian.jacobians(request.net, own, fixed, x, select, scalar)
    return {name: J[None] for name, J in found.items()}
