"""What the suite asks of any module: its outputs along a training, its layers, its width, its initial parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.task import Task


def outputs(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """z at every snapshot, [S, n, c], in float64.

    Args:
        params: one member's, each [S, ...].
        x: [n, *shape].
    """
    double = copy.deepcopy(net).double()  # its buffers, too
    first = next(iter(params.values()))
    x = x.to(first.device, torch.float64)
    z = [
        functional_call(double, {name: value[snapshot].double() for name, value in params.items()}, (x,)).detach()
        for snapshot in range(len(first))
    ]
    return torch.stack(z)


def change(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """z at every snapshot minus z at the first, [S, n, c], in float64 (arguments as for ``outputs``)."""
    z = outputs(net, params, x)
    return z - z[0]


def activations_of(net: nn.Module, task: Task) -> int:
    """Numbers that the layers with weights put out for one sample."""
    sizes: list[int] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(output[0].numel()))
        for layer in weight_layers(net)
    ]
    try:
        with torch.no_grad():
            first = next(net.parameters())
            net(task.x_train[:1].to(first.device, first.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)


def weight_layers(net: nn.Module) -> list[nn.Module]:
    """The modules with a weight matrix or convolution kernel of their own, in order; the read-out is the last."""
    return [
        module
        for module in net.modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim >= 2
    ]


def width_of(net: nn.Module) -> int:
    """Hidden units of the last hidden layer (channels of a CNN, never the read-out's fan-in).

    Raises:
        ValueError: no hidden layer.
    """
    layers = weight_layers(net)
    if len(layers) < 2:
        raise ValueError("A richness needs a hidden layer, and this model has none: use trainer.richness=ntk.")
    return fan_out(layers[-2])


def fan_out(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def initialised(net: nn.Module, seeds: Sequence[int]) -> list[dict[str, Tensor]]:
    """Fresh parameters of every member's seed, drawn on the CPU so that every device starts from the same ones."""
    fresh, found = copy.deepcopy(net).cpu(), []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            for module in fresh.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
            found.append({name: parameter.detach().clone() for name, parameter in fresh.named_parameters()})
    return found


def collect(dicts: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [d[name] for d in dicts] for name in dicts[0]}
