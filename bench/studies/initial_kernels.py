"""Kernels of networks at initialization, over widths, beside their infinite-width limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.ntk import empirical_ntk
from bench.record import Record
from bench.studies.named import make
from bench.studies.scored_networks import scales
from bench.studies.study import result
from bench.trained import seed_of
from models.activations import activation as activation_module
from models.layers import Linear
from models.limits import infinite_width
from tasks.sphere import single_index


@dataclass(frozen=True)
class InitialKernels:
    """Settings: each seed is a data draw (``n`` points on the sphere in ``d`` dimensions) with ``inits`` networks."""

    activation: str = "relu"
    depth: int = 1
    widths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    inits: int = 8
    n: int = 64
    d: int = 8
    units: int = 2**17
    seeds: tuple[int, ...] = tuple(range(8))


def initial_kernels(settings: InitialKernels) -> Record:
    """``distance`` and ``distance_wrong`` [seeds, widths, inits]: ``|K_0 - K_inf|_F / |K_inf|_F``; wrong: no biases.

    For one hidden layer also ``constant`` [seeds]: the exact root mean square of ``distance * sqrt(width)``. The NTK is
    there a mean of ``width`` independent one-unit kernels, so that constant is the standard deviation of one of them,
    here from ``units`` fresh units.
    """
    distances, wrong, constants = [], [], []
    for seed in settings.seeds:
        x = single_index(d=settings.d, n_train=settings.n, n_test=1, seed=seed_of("data", seed)).x_train.double()
        limit = infinite_width(_net(settings, 8))(x).ntk
        unbiased = infinite_width(_net(settings, 8, b_std=0.0, readout_b_std=None))(x).ntk
        kernels = [_kernels(settings, width, seed, x) for width in settings.widths]
        distances.append([_distances(k, limit) for k in kernels])
        wrong.append([_distances(k, unbiased) for k in kernels])
        if settings.depth == 1:
            constants.append(_constant(settings, seed, x, limit))
    arrays = {"distance": np.array(distances), "distance_wrong": np.array(wrong), "widths": np.array(settings.widths)}
    return result(arrays=arrays | ({"constant": np.array(constants)} if constants else {}))


def _net(settings: InitialKernels, width: int, **changes: Any) -> nn.Module:
    chosen = {"width": width, "depth": settings.depth, "activation": settings.activation}
    shapes = {"in_features": settings.d, "out_features": 1}
    made = make("model", "mlp", shapes, **{**chosen, **scales(settings.activation), **changes})
    assert isinstance(made, nn.Module)
    return made.double()


def _kernels(settings: InitialKernels, width: int, seed: int, x: Tensor) -> Tensor:
    """K_0 of every init, [inits, n, n]."""
    net = _net(settings, width)
    return _ntk(net, _draw(net, settings.inits, seed_of("init", seed, width)), x)


def _draw(net: nn.Module, count: int, seed: int) -> dict[str, Tensor]:
    """Parameters of ``count`` networks in NTK parameterization: all entries N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in net.named_parameters()
    }


def _ntk(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """[count, n, n]."""
    kernel = empirical_ntk(net, x, outputs=0, params=params)
    assert isinstance(kernel, Tensor)
    return kernel


def _distances(kernels: Tensor, limit: Tensor) -> list[float]:
    return ((kernels - limit).flatten(1).norm(dim=1) / limit.norm()).tolist()


def _constant(settings: InitialKernels, seed: int, x: Tensor, limit: Tensor) -> float:
    """The standard deviation of a one-unit kernel, summed over entries, relative to the limit.

    With pre-activation u and read-out weight v, that kernel is ``k_ij = phi_i phi_j + v^2 phi'_i phi'_j G_ij`` (and the
    constant of the read-out's bias), ``G = w_std^2 x x' / d + b_std^2``; E v^2 = 1 and E v^4 = 3 are exact, and u is
    sampled.
    """
    generator = torch.Generator().manual_seed(seed_of("unit", seed))
    weights = torch.randn(settings.units, settings.d + 1, generator=generator, dtype=torch.float64)
    first, readout = (m for m in _net(settings, 1).modules() if isinstance(m, Linear))
    w_std, b_std = first.w_std, first.b_std or 0.0
    u = w_std * weights[:, :-1] @ x.T / settings.d**0.5 + b_std * weights[:, -1:]
    phi, slope = _value_and_slope(settings.activation, u)
    gram = w_std**2 * x @ x.T / settings.d + b_std**2
    second = ((phi**2).T @ phi**2 + 2 * gram * ((phi * slope).T @ (phi * slope))
              + 3 * gram**2 * ((slope**2).T @ slope**2)) / settings.units  # fmt: skip
    return float((second - (limit - (readout.b_std or 0.0) ** 2) ** 2).sum().sqrt() / limit.norm())


def _value_and_slope(activation: str, u: Tensor) -> tuple[Tensor, Tensor]:
    u = u.requires_grad_()
    phi = activation_module(activation)(u)
    (slope,) = torch.autograd.grad(phi.sum(), u)
    return phi.detach(), slope
