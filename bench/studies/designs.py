"""Designed activations in finite networks: the noise of their kernels, as certified and as measured."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.ntk import empirical_ntk
from bench.record import Record
from bench.studies.study import result
from bench.trained import seed_of
from models.design import Hermite, design, hermite_activation
from models.layers import Linear


@dataclass(frozen=True)
class DesignNoise:
    """Settings: the first coefficients of exp(c - 1) as NTK; each seed is ``n`` points, ``nets`` nets a width."""

    order: int = 5
    n: int = 24
    d: int = 8
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    nets: int = 8
    seeds: tuple[int, ...] = tuple(range(8))


def design_noise(settings: DesignNoise) -> Record:
    """Root mean square over networks and entries of ``K_m - K``, in units of K(1).

    Arrays: ``bounded``, ``again`` (other networks), ``plus`` (all signs +), ``unlike`` (against the NNGP)
    and ``predicted``, ``predicted_flat`` (the noise at c = 1 for each entry), all [seeds, widths]; ``widths``.
    """
    a = [math.exp(-1) / math.factorial(k) for k in range(settings.order + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # heavy tails
        made = design(a)
    bounded = hermite_activation(a)
    plus = Hermite([abs(b) for b in bounded.coefficients])
    columns: dict[str, list[list[float]]] = {}
    for seed in settings.seeds:
        x = on_sphere(settings.n, settings.d, seed_of("data", seed))
        c, exact = x @ x.T / settings.d, made.kernel(x)
        unlike = sum(a_k / (1 + k) * c**k for k, a_k in enumerate(a))
        rows: dict[str, list[float]] = {}
        for width in settings.widths:
            kernels = {
                name: _kernels(phi, settings, width, seed_of(axis, seed, width), x)
                for name, phi, axis in (
                    ("bounded", bounded, "init"),
                    ("again", bounded, "again"),
                    ("plus", plus, "init"),
                )
            }
            errors = {name: k - exact for name, k in kernels.items()} | {"unlike": kernels["bounded"] - unlike}
            flat = made.certificate.standard_deviation(width)
            row = {name: float(e.square().mean().sqrt()) / made.certificate.at_one for name, e in errors.items()}
            row["predicted"] = float(made.certificate.standard_deviation(width, c).square().mean().sqrt())
            row["predicted_flat"] = float(flat)
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    return result(arrays={name: np.array(v) for name, v in columns.items()} | {"widths": np.array(settings.widths)})


def on_sphere(n: int, d: int, seed: int) -> Tensor:
    """[n, d], float64, of norm sqrt(d)."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True) * d**0.5


def _kernels(phi: nn.Module, settings: DesignNoise, width: int, seed: int, x: Tensor) -> Tensor:
    """[nets, n, n]."""
    net = nn.Sequential(Linear(settings.d, width), phi, Linear(width, 1)).double()
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: torch.randn(settings.nets, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in net.named_parameters()
    }
    found = empirical_ntk(net, x, outputs=0, params=params)
    assert isinstance(found, Tensor)
    return found
