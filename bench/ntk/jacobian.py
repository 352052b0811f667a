"""Per-sample gradients of any parameters of any module, by ``torch.func``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.ntk.watch import no_recomputation
from models.blocks import out_of_memory

Params = Mapping[str, Tensor]

CHUNK = 32
"""Samples whose gradients are formed at once; larger chunks are slower on a CPU and need more memory everywhere."""


def jacobians(
    net: nn.Module, params: Params, fixed: Params, x: Tensor, select: Callable[[Tensor], Tensor], scalar: bool
) -> dict[str, Tensor]:
    """Per-sample gradients of the selected outputs with respect to ``params``.

    Args:
        fixed: all other parameters, and the buffers.
        x: [N, *shape].
        select: output of one sample [c] -> the k numbers whose gradients are wanted, [k], or [] if ``scalar``.

    Returns:
        parameter name -> [N, k, parameter size].
    """

    def outputs(trained: Params, sample: Tensor) -> Tensor:
        return select(functional_call(net, {**fixed, **trained}, (sample[None],))[0])

    detached = {name: parameter.detach() for name, parameter in params.items()}
    # One backward pass is enough for a scalar: a Jacobian's second vmap would slow convolutions down.
    derivative = grad(outputs) if scalar else jacrev(outputs)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # the fused attention has no rule for vmap
            warnings.filterwarnings("ignore", "There is a performance drop")
            gradients = vmap(derivative, in_dims=(None, 0), chunk_size=CHUNK)(detached, x)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        gradients = None
    if gradients is None:  # some modules, such as LSTM, cannot be vectorised
        gradients = _one_by_one(outputs, detached, x)
    return {
        name: gradient.reshape(len(x), 1 if scalar else gradient.shape[1], -1) for name, gradient in gradients.items()
    }


def _one_by_one(outputs: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor) -> dict[str, Tensor]:
    leaves = {name: parameter.requires_grad_() for name, parameter in params.items()}
    rows: dict[str, list[Tensor]] = {name: [] for name in leaves}
    for sample in x:
        with torch.enable_grad(), no_recomputation():
            numbers = outputs(leaves, sample).reshape(-1).unbind()
        for k, number in enumerate(numbers):
            found = torch.autograd.grad(
                number, list(leaves.values()), retain_graph=k + 1 < len(numbers), materialize_grads=True
            )
            for name, gradient in zip(leaves, found, strict=True):
                rows[name].append(gradient)
    return {name: torch.stack(gradients).unflatten(0, (len(x), -1)) for name, gradients in rows.items()}
