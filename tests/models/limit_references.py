"""Independent references for the limits: textbook recursions, quadrature by scipy, and Jacobians by brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from models.layers import Linear
from models.limits import elementwise, infinite_width


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


RADIUS, COUNT = 9.0, 12  # deviations, and nodes of a panel


def _panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and standard normal weights between edges [..., e], cut to the radius."""
    x, w = np.polynomial.legendre.leggauss(COUNT)
    edges = np.sort(np.clip(edges, -RADIUS, RADIUS), -1)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    nodes = (middle[..., None] + half[..., None] * x).reshape(*edges.shape[:-1], -1)
    weights = (half[..., None] * w).reshape(nodes.shape)
    return nodes, weights * np.exp(-nodes * nodes / 2) / math.sqrt(2 * math.pi)


def nested_dual(
    phi: Callable[[Tensor], Tensor],
    kxx: np.ndarray,
    kxy: np.ndarray,
    kyy: np.ndarray,
    kinks: tuple[float, ...] = (0.0,),
) -> tuple[np.ndarray, np.ndarray]:
    """E[phi phi] and E[phi' phi'] [n, n] of one set of variables: over u, and v given u, both split at the kinks.

    Panels of .75 deviations, finer where v's mean passes a kink; what agrees with itself in one dimension.
    """

    def both(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = torch.from_numpy(np.ascontiguousarray(u)).requires_grad_()
        value = phi(z.clone())
        slope = torch.autograd.grad(value.sum(), z)[0] if value.requires_grad else torch.zeros_like(z)
        return value.detach().numpy(), slope.numpy()

    coarse = np.arange(-RADIUS, RADIUS + 0.1, 0.75)
    ring = np.array([-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8])
    value, slope = np.zeros(kxy.shape), np.zeros(kxy.shape)
    for i, j in itertools.combinations_with_replacement(range(len(kxy)), 2):
        s, t, k = math.sqrt(kxx[i]), math.sqrt(kyy[j]), float(kxy[i, j])
        places = np.array(kinks)
        cosine = min(max(k / (s * t), -1.0), 1.0)
        sine = max(math.sqrt((1 - cosine) * (1 + cosine)), 1e-12)
        if i == j:
            z, w = _panels(np.concatenate([coarse, places / s]))
            found = [float((f * f) @ w) for f in both(s * z)]
        else:
            around = (places / (t * cosine or 1e-9))[:, None] + ring * sine / (abs(cosine) or 1e-9)
            z, w = _panels(np.concatenate([coarse, places / s, around.flatten()]))
            crossing = (places / t - cosine * z[:, None]) / sine
            x, inner = _panels(np.concatenate([np.broadcast_to(coarse, (len(z), len(coarse))), crossing], 1))
            second = both(t * (cosine * z[:, None] + sine * x))
            found = [float((f * (g * inner).sum(1)) @ w) for f, g in zip(both(s * z), second, strict=True)]
        value[i, j], slope[i, j] = value[j, i], slope[j, i] = found
    return value, slope


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


Q = torch.tensor([0.3, 1.0, 2.5, 4.0], dtype=torch.float64)
NORMS = torch.tensor([0.2, 3.0, 1.0, 1.0, 2.0, 0.05], dtype=torch.float64)
COSINES = torch.tensor([-0.999, -0.4, 0.3, 0.9, 0.9999, 1 - 1e-9], dtype=torch.float64)


def covariances() -> tuple[torch.Tensor, torch.Tensor]:
    k = COSINES * torch.outer(Q.sqrt(), NORMS.sqrt())
    return k, (Q[:, None] + NORMS[None]) / 2


def duals(module: nn.Module, q1: torch.Tensor, q2: torch.Tensor, cosine: torch.Tensor) -> tuple:
    """Both dual maps [r, c] through a network: one hidden layer on inputs of two features at the given angles."""
    angle = torch.arccos(cosine)
    x1 = math.sqrt(2) * q1.sqrt()[:, None] * torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    x2 = math.sqrt(2) * q2.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    limit = infinite_width(nn.Sequential(Linear(2, 3), module, Linear(3, 1)))(x1, x2)
    k = x1 @ x2.T / 2
    return limit.nngp, (limit.ntk - limit.nngp) / k, limit.error


def made(function) -> nn.Module:
    """A module of an element-wise function, that is not looked into."""
    return elementwise(type("Made", (nn.Module,), {"forward": lambda self, z: function(z)}))()


def normal_density(z: np.ndarray | float) -> Any:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
