"""Empirical NTK of a network whose parameters all sit in linear layers, layer by layer.

For ``z = W h`` the kernel's share of W is ``(h_n . h_m) (D_n . D_m)`` with D the gradient of the output with respect to
z: two Gram matrices instead of per-sample weight gradients, O(N^2 (d_in + d_out)) instead of O(N^2 d_in d_out), exact
(Novak, Sohl-Dickstein and Schoenholz 2022, "Fast finite width neural tangent kernel", structured derivatives).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.layers import Linear

Params = Mapping[str, Tensor]
Gradients = Callable[[Tensor], Iterator[Tensor]]
"""Output [..., N, c] -> the scalars per sample [..., N] whose gradients make up the kernel."""


@dataclass(frozen=True)
class Layer:
    """A linear layer: its name, its width, and d(pre-activation)/d(parameter) per unit of input, 0 if frozen."""

    name: str
    out_features: int
    weight_scale: float
    bias_scale: float


@dataclass(frozen=True)
class Factors:
    """Per layer: inputs h [m, N, d_in (+ 1)], bias included, and gradients D [m, N, outputs, d_out]."""

    h: dict[str, Tensor]
    D: dict[str, Tensor]


class NotLayerwiseError(ValueError):
    """This module's NTK is no sum over linear layers: one sentence that says which part is not."""


def linear_layers(net: nn.Module) -> list[Layer]:
    """The linear layers of ``net`` that hold all its trainable parameters.

    Raises:
        NotLayerwiseError: a trainable parameter belongs to another kind of module, or to two layers (tied weights).
    """
    layers = []
    owned: list[nn.Parameter] = []
    for name, module in net.named_modules():
        own = list(module.parameters(recurse=False))
        if not any(parameter.requires_grad for parameter in own):
            continue
        if type(module) not in (Linear, nn.Linear):
            raise NotLayerwiseError(f"{name or 'the network'} ({type(module).__name__}) is no linear layer.")
        layers.append(_layer(name, module))
        owned += own
    if len({id(parameter) for parameter in owned}) != len(owned):
        raise NotLayerwiseError("Two layers share a parameter.")
    return layers


def _layer(name: str, module: nn.Module) -> Layer:
    assert isinstance(module, Linear | nn.Linear)
    weight_scale, bias_scale = 1.0, 1.0
    if isinstance(module, Linear) and module.parameterization == "ntk":
        weight_scale, bias_scale = module.w_std / module.in_features**0.5, module.b_std or 0.0
    if not module.weight.requires_grad:
        weight_scale = 0.0
    if module.bias is None or not module.bias.requires_grad:
        bias_scale = 0.0
    return Layer(name, module.out_features, weight_scale, bias_scale)


def check(net: nn.Module, layers: list[Layer], params: Params, buffers: Params, x: Tensor) -> None:
    """Make sure on one sample x [1, *shape] that the layers' shares are the whole kernel.

    A forward method may use a layer's weight without calling the layer, which no hook sees. A chain of modules cannot.

    Raises:
        NotLayerwiseError: a layer is used twice, not at all, in another way, or on inputs of more than one axis.
    """
    one = {name: parameter[:1] for name, parameter in params.items()}
    found = factors(net, layers, one, buffers, x, lambda output: iter([output.sum(-1)]))
    if all(isinstance(module, nn.Sequential) or not list(module.children()) for module in net.modules()):
        return
    weights = {name: one[name][0].requires_grad_() for name, p in net.named_parameters() if p.requires_grad}
    output = functional_call(net, {**buffers, **{name: p[0] for name, p in one.items()}, **weights}, (x,))
    gradients = torch.autograd.grad(output.sum(), list(weights.values()), allow_unused=True)
    exact = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
    layerwise = sum(float(gram(layer.name, found, found, trace=True)) for layer in layers)
    if abs(layerwise - exact) > 1e-3 * exact:
        raise NotLayerwiseError("A weight is used outside its layer's own call.")


@contextmanager
def _tapped(net: nn.Module, inputs: dict[str, Tensor], taps: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, each tapped layer records its input in ``inputs`` and adds its tap to its output.

    A gradient with respect to the tap is the gradient with respect to the pre-activation, also where the next
    operation works in place.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def tap(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in inputs:
                raise NotLayerwiseError(f"{name} is called twice.")
            if arguments[0].ndim != 2:
                raise NotLayerwiseError(f"{name} acts on {arguments[0].ndim - 1} axes, not on one.")
            inputs[name] = arguments[0]
            return output + taps[name]

        return tap

    modules = dict(net.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def factors(
    net: nn.Module, layers: list[Layer], params: Params, buffers: Params, x: Tensor, gradients: Gradients
) -> Factors:
    """Inputs and output gradients of every layer, by one forward pass and one backward pass an output.

    Args:
        params: each with a leading member axis, [m, ...].
        x: [N, *shape], the same for every member.

    Raises:
        NotLayerwiseError: a layer is used twice, not at all, or on inputs of more than one axis.
    """
    members = next(iter(params.values())).shape[0]
    taps = {layer.name: x.new_zeros(members, len(x), layer.out_features).requires_grad_() for layer in layers}

    def forward(member_params: Params, member_taps: Params) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}
        with _tapped(net, inputs, member_taps):
            output = functional_call(net, {**buffers, **member_params}, (x,))
        missing = [name for name in member_taps if name not in inputs]
        if missing:
            raise NotLayerwiseError(f"{missing[0]} is never called.")
        return output, inputs

    detached = {name: parameter.detach() for name, parameter in params.items()}
    if members == 1:
        output, inputs = forward({k: v[0] for k, v in detached.items()}, {k: v[0] for k, v in taps.items()})
        output, inputs = output[None], {k: v[None] for k, v in inputs.items()}
    else:
        output, inputs = torch.vmap(forward)(detached, taps)
    return Factors(
        h={layer.name: _with_bias(layer, inputs[layer.name].detach()) for layer in layers},
        D=_output_gradients(output, taps, gradients),
    )


def _with_bias(layer: Layer, h: Tensor) -> Tensor:
    """The layer's inputs times its scale, and the bias as one more input."""
    h = h * layer.weight_scale
    if layer.bias_scale == 0.0:
        return h
    return torch.cat([h, h.new_full((*h.shape[:-1], 1), layer.bias_scale)], dim=-1)


def _output_gradients(output: Tensor, taps: dict[str, Tensor], gradients: Gradients) -> dict[str, Tensor]:
    scalars = list(gradients(output))
    rows = [
        torch.autograd.grad(s.sum(), list(taps.values()), retain_graph=k + 1 < len(scalars))
        for k, s in enumerate(scalars)
    ]
    if len(rows) == 1:
        return {name: gradient.unsqueeze(2) for name, gradient in zip(taps, rows[0], strict=True)}
    return {name: torch.stack([row[i] for row in rows], dim=2) for i, name in enumerate(taps)}


def gram(name: str, one: Factors, two: Factors, trace: bool) -> Tensor:
    """The kernel's share of one layer: [m, n1, n2, c, c], or [m, n1, n2] if summed over outputs (``trace``)."""
    inputs = one.h[name] @ two.h[name].mT
    D1, D2 = one.D[name], two.D[name]
    if trace:
        return inputs * (D1.flatten(2) @ D2.flatten(2).mT)
    m, n1, c, _ = D1.shape
    n2 = D2.shape[1]
    outputs = (D1.flatten(1, 2) @ D2.flatten(1, 2).mT).view(m, n1, c, n2, c).transpose(2, 3)
    return inputs[..., None, None] * outputs
