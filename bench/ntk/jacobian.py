"""Empirical NTK of any module from per-sample Jacobians (``torch.func``), contracted parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

Params = Mapping[str, Tensor]

CHUNK = 32
"""Samples whose gradients are formed at once; larger chunks are slower on a CPU and need more memory everywhere."""


def jacobians(
    net: nn.Module, params: Params, buffers: Params, x: Tensor, select: Callable[[Tensor], Tensor], scalar: bool
) -> dict[str, Tensor]:
    """Per-sample gradients of the selected outputs.

    Args:
        x: [N, *shape].
        select: output of one sample [c] -> the k numbers whose gradients are wanted, [k], or [] if ``scalar``.

    Returns:
        parameter name -> [N, k, parameter size].
    """

    def outputs(trained: Params, sample: Tensor) -> Tensor:
        return select(functional_call(net, {**buffers, **trained}, (sample[None],))[0])

    detached = {name: parameter.detach() for name, parameter in params.items()}
    # One backward pass is enough for a scalar: a Jacobian's second vmap would slow convolutions down.
    derivative = grad(outputs) if scalar else jacrev(outputs)
    gradients = vmap(derivative, in_dims=(None, 0), chunk_size=CHUNK)(detached, x)
    return {
        name: gradient.reshape(len(x), 1 if scalar else gradient.shape[1], -1) for name, gradient in gradients.items()
    }


def contract(one: Tensor, two: Tensor, trace: bool) -> Tensor:
    """[n1, k, p], [n2, k, p] -> [n1, n2, k, k], or [n1, n2] if summed over outputs (``trace``)."""
    if trace:
        return one.flatten(1) @ two.flatten(1).T
    (n1, k, _), n2 = one.shape, len(two)
    return (one.flatten(0, 1) @ two.flatten(0, 1).T).view(n1, k, n2, k).transpose(1, 2)
