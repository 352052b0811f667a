"""Independent references for designs: published closed forms, adaptive quadrature, finite networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy import integrate
from torch import Tensor, nn


def sphere(n: int, d: int, radius: float = 1.0, seed: int = 0) -> Tensor:
    """n inputs with |x|^2 = radius^2 d."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True) * radius * d**0.5


def quadrature(phi: Callable[[float], float], cov: list[float], cuts: list[float]) -> float:
    """E[phi(u) phi(v)] for variances and covariance cov = [q1, q2, k], by scipy, split at the cuts."""
    q1, q2, k = cov
    slope, rest = k / q1, math.sqrt(q2 - k * k / q1)

    def inner(u: float) -> float:
        points = sorted({min(max((c - slope * u) / rest, -8.0), 8.0) for c in cuts})
        return sum(
            integrate.quad(lambda w: phi(slope * u + rest * w) * math.exp(-w * w / 2), a, b, epsabs=1e-8)[0]
            for a, b in pairwise([-8.0, *points, 8.0])
        )

    s = math.sqrt(q1)
    total = sum(
        integrate.quad(lambda u: phi(u) * inner(u) * math.exp(-u * u / (2 * q1)), a, b, epsabs=1e-7)[0]
        for a, b in pairwise([-8 * s, *sorted(cuts), 8 * s])
    )
    return total / (2 * math.pi * s)


def arc_cosine_ntk(c: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of the named ReLU network at cosines c: Cho & Saul 2009 in the recursion of Lee et al. 2019."""
    q = 2 + 0.01
    k, ntk = 2 * c + 0.01, 2 * c + 0.01
    for layer in range(depth):
        last = layer == depth - 1
        rho = k / q
        theta = np.arccos(rho)
        value = q * (np.sin(theta) + (np.pi - theta) * rho) / (2 * np.pi)
        slope = (np.pi - theta) / (2 * np.pi)
        w, b = (1.0, 0.0) if last else (2.0, 0.01)
        k, ntk, q = w * value + b, w * value + b + w * slope * ntk, w * q / 2 + b
    return k, ntk


def finite_ntk(net: nn.Sequential, x: Tensor) -> Tensor:
    """NTK [n, n] of Flatten, Linear, activation, Linear without biases, written out by hand."""
    first, phi, last = net[1], net[2], net[3]
    d, width = first.in_features, last.in_features
    z = (x @ first.weight.detach().T / d**0.5).requires_grad_()
    h = phi(z)
    (slope,) = torch.autograd.grad(h.sum(), z)
    back = slope * last.weight.detach()[0]
    return (h @ h.T + back @ back.T * (x @ x.T / d)).detach() / width
