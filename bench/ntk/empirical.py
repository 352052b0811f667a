"""``empirical_ntk``: which outputs, which method, which members; the arithmetic is in its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.ntk import jacobian, layerwise

Outputs = Literal["full", "trace", "sum"] | int
Method = Literal["auto", "layerwise", "jacobian"]
METHODS = ("auto", "layerwise", "jacobian")


def empirical_ntk(
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "full",
    method: Method = "auto",
    dtype: torch.dtype | None = None,
    by_layer: bool = False,
    params: Mapping[str, Tensor] | None = None,
) -> Tensor | dict[str, Tensor]:
    """The empirical NTK, K(x, x') = grad z(x) . grad z(x'), over the trainable parameters of ``net``.

    Args:
        net: maps [N, *shape] to [N, c]; samples must not interact (no batch normalisation in train mode).
        x1: [n1, *shape]; its device is the device of everything.
        x2: [n2, *shape]; None: x1, and the kernel is exactly symmetric.
        outputs: "full": [n1, n2, c, c]; "trace": sum over outputs of K_cc, [n1, n2]; "sum": the kernel of the summed
            outputs, 1'K1, [n1, n2]; an int: the kernel of that output, [n1, n2].
        method: "layerwise" (Gram matrices, linear layers only: O(N^2 (d_in + d_out)) a layer), "jacobian" (per-sample
            gradients, any module: O(N^2 parameters)), "auto": the first where it applies.
        dtype: the precision of the whole computation; None: that of x1.
        by_layer: a dict, module name -> that module's share; the shares sum to the kernel.
        params: parameters to use instead of the module's own, each with a leading member axis, which becomes the
            leading axis of the result.

    Raises:
        ValueError: an unknown option, a net whose samples interact, or a layer that ``method`` cannot do.
    """
    _check(net, x1, x2, outputs, method, dtype)
    precision = dtype or x1.dtype
    one = x1.to(precision)
    two = None if x2 is None else x2.to(one)
    net_params = dict(net.named_parameters())
    if params is not None and net_params.keys() - params.keys():
        raise ValueError(
            f"params lacks {min(net_params.keys() - params.keys())!r}: it must name every parameter of net."
        )
    given = {name: parameter[None] for name, parameter in net_params.items()} if params is None else params
    stacked = {name: given[name].detach().to(one) for name in net_params}
    buffers = {
        name: buffer.to(one) if buffer.is_floating_point() else buffer.to(one.device)
        for name, buffer in net.named_buffers()
    }
    work = _Work(net, stacked, buffers, outputs)
    shares = _layerwise(work, one, two) if _use_layerwise(work, one, method) else _jacobian(work, one, two)
    if params is None:
        shares = {name: share[0] for name, share in shares.items()}
    return shares if by_layer else _total(shares)


def _check(
    net: nn.Module, x1: Tensor, x2: Tensor | None, outputs: Outputs, method: str, dtype: torch.dtype | None
) -> None:
    if not (isinstance(outputs, int) or outputs in ("full", "trace", "sum")):
        raise ValueError(f"outputs must be 'full', 'trace', 'sum' or the number of an output, not {outputs!r}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, not {dtype}.")
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x1 and x2 must agree in all axes but the first, not {list(x1.shape)} and {list(x2.shape)}.")
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"{name} (batch normalisation in train mode) makes samples interact: call net.eval().")


@dataclass(frozen=True)
class _Work:
    """What every tile needs: parameters with a member axis, buffers, and which outputs."""

    net: nn.Module
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    outputs: Outputs

    @property
    def trace(self) -> bool:
        return self.outputs != "full"

    def gradients(self, output: Tensor) -> Iterator[Tensor]:
        """The scalars per sample whose gradients make up the kernel; ``output`` is [..., c]."""
        if self.outputs == "sum":
            yield output.sum(-1)
        elif isinstance(self.outputs, int):
            yield output[..., self.outputs]
        else:
            yield from output.unbind(-1)


def _use_layerwise(work: _Work, x: Tensor, method: str) -> bool:
    """Raises: ValueError where "layerwise" was asked for and does not apply."""
    if method == "jacobian":
        return False
    try:
        layers = layerwise.linear_layers(work.net)
        layerwise.check(work.net, layers, work.params, work.buffers, x[:1])
    except layerwise.NotLayerwiseError as error:
        if method == "layerwise":
            raise ValueError(f"method 'layerwise' does not apply: {error} Use 'auto' or 'jacobian'.") from error
        return False
    return True


def _layerwise(work: _Work, one: Tensor, two: Tensor | None) -> dict[str, Tensor]:
    layers = layerwise.linear_layers(work.net)
    left = layerwise.factors(work.net, layers, work.params, work.buffers, one, work.gradients)
    right = left if two is None else layerwise.factors(
        work.net, layers, work.params, work.buffers, two, work.gradients
    )  # fmt: skip
    return {layer.name: layerwise.gram(layer.name, left, right, work.trace) for layer in layers}


def _jacobian(work: _Work, one: Tensor, two: Tensor | None) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in work.net.named_parameters() if parameter.requires_grad}
    scalar = work.outputs == "sum" or isinstance(work.outputs, int)

    def select(output: Tensor) -> Tensor:
        return next(work.gradients(output)) if scalar else output

    shares: dict[str, list[Tensor]] = {}
    for member in range(next(iter(work.params.values())).shape[0]):
        values = {name: parameter[member] for name, parameter in work.params.items()}
        fixed = {**work.buffers, **{name: value for name, value in values.items() if name not in trained}}
        own = {name: values[name] for name in trained}
        left = jacobian.jacobians(work.net, own, fixed, one, select, scalar)
        right = left if two is None else jacobian.jacobians(work.net, own, fixed, two, select, scalar)
        by_module: dict[str, Tensor] = {}
        for name in trained:
            module = name.rpartition(".")[0]
            share = jacobian.contract(left[name], right[name], work.trace)
            by_module[module] = by_module[module] + share if module in by_module else share
        for module, share in by_module.items():
            shares.setdefault(module, []).append(share)
    return {module: torch.stack(parts) for module, parts in shares.items()}


def _total(shares: dict[str, Tensor]) -> Tensor:
    kernels = iter(shares.values())
    total = next(kernels)
    for share in kernels:
        total += share
    return total
