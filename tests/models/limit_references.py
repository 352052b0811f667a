"""Independent references for the limits: textbook recursions, quadrature by scipy, and Jacobians by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import integrate
from torch import Tensor, nn
from torch.func import functional_call, jacrev


def arc_cosine(kxx: np.ndarray, kxy: np.ndarray, kyy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[relu relu] and E[step step]: Cho & Saul 2009, orders 1 and 0."""
    norms = np.sqrt(np.outer(kxx, kyy))
    theta = np.arccos(np.clip(kxy / norms, -1, 1))
    first = norms * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    return first, (np.pi - theta) / (2 * np.pi)


def arc_sine(kxx: np.ndarray, kxy: np.ndarray, kyy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[erf erf] (Williams 1997) and E[erf' erf'] (its derivative by the covariance)."""
    product = np.outer(1 + 2 * kxx, 1 + 2 * kyy)
    return 2 / np.pi * np.arcsin(2 * kxy / np.sqrt(product)), 4 / np.pi / np.sqrt(product - 4 * kxy**2)


def recursion(
    dual: Callable[..., tuple[np.ndarray, np.ndarray]],
    x: np.ndarray,
    y: np.ndarray,
    depth: int,
    w2: float,
    b2: float,
    readout_w2: float,
    readout_b2: float,
) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of an MLP in NTK parameterization, as printed in Lee et al. 2019, all in full matrices."""
    d = x.shape[1]
    z = np.concatenate([x, y])
    k = w2 * z @ z.T / d + b2
    ntk = k.copy()
    for layer in range(depth):
        last = layer == depth - 1
        value, slope = dual(np.diag(k), k, np.diag(k))
        w, b = (readout_w2, readout_b2) if last else (w2, b2)
        ntk = w * value + b + w * slope * ntk
        k = w * value + b
    return k[: len(x), len(x) :], ntk[: len(x), len(x) :]


def expectation(f: Callable[[float], float], g: Callable[[float], float], q1: float, q2: float, k: float) -> float:
    """E[f(u) g(v)] for Gaussian (u, v) of covariance [[q1, k], [k, q2]], by scipy's adaptive double quadrature."""
    slope, rest = k / math.sqrt(q1), math.sqrt(q2 - k * k / q1)

    def integrand(t: float, s: float) -> float:
        weight = math.exp(-(s * s + t * t) / 2) / (2 * math.pi)
        return weight * f(math.sqrt(q1) * s) * g(slope * s + rest * t)

    value, _ = integrate.dblquad(integrand, -9, 9, -9, 9, epsabs=1e-9, epsrel=1e-9)
    return value


def empirical(net: nn.Module, params: dict[str, Tensor], x1: Tensor, x2: Tensor) -> Tensor:
    """[n1, n2]: the NTK of the first output by its Jacobians."""

    def output(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, {**dict(net.named_parameters()), **p}, (x,))[:, 0]

    left, right = (jacrev(output)(params, x) for x in (x1, x2))
    return torch.stack([left[name].flatten(1) @ right[name].flatten(1).T for name in params]).sum(0)


def trained(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
