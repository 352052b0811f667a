"""A brute-force reference for small images: full matrices over all pixels of all inputs, in extended precision.

Nothing here slides a window. What a convolution or a pooling layer does to positions is read off torch itself, by
applying the layer to images of a single one; kernels are then sums of matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from limit_references import arc_cosine, arc_sine, nested_dual
from torch import nn

from models.activations import Erf
from models.layers import Conv2d, Linear
from models.resnet import ResidualBlock

DUALS = {nn.ReLU: arc_cosine, Erf: arc_sine}


class ByQuadrature(nn.Module):
    """Marks an activation whose dual maps the reference finds by its own quadrature, `kinks` of it named."""

    def __init__(self, phi: nn.Module, kinks: tuple[float, ...] = (0.0,)) -> None:
        super().__init__()
        self.phi, self.kinks = phi, kinks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.phi(x)

    def dual(self, kxx: np.ndarray, kxy: np.ndarray, kyy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nested_dual(self.phi, kxx, kxy, kyy, self.kinks)


def _images_of_one(shape: tuple[int, ...]) -> torch.Tensor:
    """[positions, 1, *shape]: every image with a single one."""
    count = math.prod(shape)
    return torch.eye(count, dtype=torch.float64).reshape(count, 1, *shape)


def _matrix(layer, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """[outputs, inputs] of a linear map of positions."""
    result = layer(_images_of_one(shape))
    return result.flatten(1).T.numpy(), tuple(result.shape[2:])


def _offsets(conv: nn.Module, shape: tuple[int, ...]) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """One matrix for each entry of the kernel: which input position each output takes with it."""
    size = tuple(conv.weight.shape[2:])
    ours = isinstance(conv, Conv2d)
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[len(size)]
    padding = conv.padding
    mode = conv.padding_mode
    single = kind(1, 1, size, conv.stride, padding, conv.dilation, bias=False, padding_mode=mode).double()
    if ours:
        single.forward = lambda x: Conv2d.forward(conv_like(conv, single.weight), x)
    matrices = []
    for index in np.ndindex(*size):
        with torch.no_grad():
            single.weight.zero_()
            single.weight[(0, 0, *index)] = 1
            matrix, new = _matrix(single, shape)
        matrices.append(matrix)
    return matrices, new


def conv_like(conv: Conv2d, weight: torch.Tensor) -> Conv2d:
    made = Conv2d(
        1, 1, conv.kernel_size, conv.stride, conv.padding, conv.padding_mode, conv.dilation, 1.0, None, "standard"
    )
    made.weight = nn.Parameter(weight.detach())
    return made


def _variances(layer: nn.Module) -> tuple[float, float, float, float]:
    """Of weights and bias, and what each adds to the NTK per unit of the averaged NNGP and 1."""
    fan_in = math.prod(layer.weight.shape[1:])
    biased = layer.bias is not None
    if isinstance(layer, Linear | Conv2d):
        w, b = layer.w_std**2, (layer.b_std or 0.0) ** 2
        return (w, b, w, b) if layer.parameterization == "ntk" else (w, b, fan_in, float(biased))
    return 1 / 3, biased / (3 * fan_in), fan_in, float(biased)


def _both_sides(matrix: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """M K M' for kernels [n, P, m, P']."""
    return np.tensordot(np.tensordot(kernel, matrix, (3, 1)), matrix, (1, 1)).transpose(0, 3, 1, 2)


def reference(net: nn.Sequential, x1: torch.Tensor, x2: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK [n1, n2] of a chain of layers and residual blocks, for images or vectors."""
    # Where two pixels agree, arccos loses half of the digits: extended precision, which has no fast matrix products.
    kind = np.longdouble if any(isinstance(layer, nn.ReLU) for layer in net.modules()) else np.float64
    x = torch.cat([x1, x2]).numpy().astype(kind)
    n, channels, shape = len(x), x.shape[1], tuple(x.shape[2:])
    features = x.reshape(n, channels, -1)
    K = np.einsum("ncp,mcq->npmq", features, features) / channels
    state = _through(net, _State(K, np.zeros_like(K), shape)).settled()
    assert state.K.shape[1] == state.K.shape[3] == 1
    K, T = (t[: len(x1), 0, len(x1) :, 0].astype(float) for t in (state.K, state.T))
    return K, T


@dataclass(frozen=True)
class _State:
    """Kernels [n, P, n, P] between all pixels of all inputs."""

    K: np.ndarray
    T: np.ndarray
    shape: tuple[int, ...]
    flat: bool = False
    gain: np.ndarray | float | None = None  # a trained gain's share of the NTK is the kernel itself

    def settled(self) -> _State:
        return self if self.gain is None else replace(self, T=self.T + self.gain * self.K, gain=None)


def _through(layers: nn.Module, state: _State) -> _State:
    for layer in layers if isinstance(layers, nn.Sequential) else [layers]:
        state = _through(layer, state) if isinstance(layer, nn.Sequential) else _layer(layer, state)
    return state


def _layer(layer: nn.Module, state: _State) -> _State:
    if not isinstance(layer, nn.ReLU):
        state = state.settled()
    K, T, shape = state.K, state.T, state.shape
    if isinstance(layer, ResidualBlock):
        kept, branch = _through(layer.shortcut, state), _through(layer.branch, _through(layer.first, state))
        scale = layer.branch_scale**2
        return replace(kept, K=kept.K + scale * branch.K, T=kept.T + scale * branch.T)
    if isinstance(layer, nn.Identity):
        return state
    if isinstance(layer, nn.Flatten):
        return replace(state, flat=True)
    if type(layer) in DUALS or isinstance(layer, ByQuadrature):
        dual = layer.dual if isinstance(layer, ByQuadrature) else DUALS[type(layer)]
        joint = K.reshape(K.shape[0] * K.shape[1], -1)
        value, slope = dual(np.diag(joint), joint, np.diag(joint))
        state = replace(state, K=value.reshape(K.shape), T=slope.reshape(K.shape) * T)
        return state.settled()  # with a gain: relu'(u) u = relu(u)
    if isinstance(layer, Conv2d | nn.Conv1d | nn.Conv2d):
        w, b, w_slope, b_slope = _variances(layer)
        matrices, shape = _offsets(layer, shape)
        averages = [sum(_both_sides(m, t) for m in matrices) / len(matrices) for t in (K, T)]
        return _State(w * averages[0] + b, w * averages[1] + w_slope * averages[0] + b_slope, shape)
    if isinstance(layer, Linear | nn.Linear):
        w, b, w_slope, b_slope = _variances(layer)
        if state.flat:
            K, T = (np.einsum("npmp->nm", t)[:, None, :, None] / t.shape[1] for t in (K, T))
        return _State(w * K + b, w * T + w_slope * K + b_slope, shape)
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):  # over channels and positions
        P = K.shape[1]
        scale = 1 / np.sqrt(np.einsum("npnp->n", K) / P + layer.eps)
        K, T = (scale[:, None, None, None] * t * scale[:, None] for t in (K, T))
        # A gain and a bias for each channel, or for each position too.
        gain = 1.0 if isinstance(layer, nn.GroupNorm) else np.eye(P)[None, :, None, :]
        return replace(state, K=K, T=T + gain, gain=gain)
    matrix, shape = _matrix(layer, shape)
    return replace(state, K=_both_sides(matrix, K), T=_both_sides(matrix, T), shape=shape)
