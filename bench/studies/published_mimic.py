"""The published activation whose shallow network mimics four hidden ReLU layers (Simon, Anand & DeWeese 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.design import PiecewiseLinear
from models.layers import Linear
from models.limits import infinite_width

A, B, C, D, E, F, G = 3.80016, 1.06, 0.0968093, 0.901006, -0.079361, 11.81057, 0.934055
ORDERS = 400  # the cosine's coefficients peak at F^2 = 139 and are below 1e-30 from 400 on


def published_mimic(z: Tensor) -> Tensor:
    """a relu(z - b) + c z + d + e cos(f z + g), fitted to the NTK of "relu:4" by its authors."""
    return A * torch.relu(z - B) + C * z + D + E * torch.cos(F * z + G)


def published_kernel(x: Tensor) -> Tensor:
    """Its NTK [n, n] on inputs x [n, d] of |x|^2 = d, exactly (unit weights, no biases).

    The part of bent lines is an exact limit; what the cosine adds, by itself and with the lines, is a power series in
    the cosine of the angle with coefficients (1 + k) b_k b'_k that decay faster than exponentially.
    """
    d = x.shape[1]
    lines = PiecewiseLinear([B], [A], C, D)
    exact = infinite_width(nn.Sequential(Linear(d, 1), lines, Linear(1, 1)))(x.double()).ntk
    bent, wave = _lines(), _wave()
    c = (x.double() @ x.double().T / d).clamp(-1, 1)
    series = torch.zeros_like(c)
    for k in range(ORDERS, -1, -1):  # Horner
        series = series * c + (1 + k) * wave[k] * (2 * bent[k] + wave[k])
    return exact + series


def _wave() -> list[float]:
    """Hermite coefficients of e cos(f z + g): ``e exp(-f^2 / 2) f^k / sqrt(k!) cos(g + k pi / 2)``."""
    return [
        E * math.exp(-F * F / 2 + k * math.log(F) - math.lgamma(k + 1) / 2) * math.cos(G + k * math.pi / 2)
        for k in range(ORDERS + 1)
    ]


def _lines() -> list[float]:
    """Those of a relu(z - b) + c z + d: of the bend, ``a h_(k-2)(b) p(b) / sqrt(k (k - 1))`` from k = 2 on."""
    density, above = math.exp(-B * B / 2) / math.sqrt(2 * math.pi), math.erfc(B / math.sqrt(2)) / 2
    found = [A * (density - B * above) + D, A * above + C]
    before, now = 0.0, 1.0  # h_(k-3), h_(k-2) at b
    for k in range(2, ORDERS + 1):
        found.append(A * density * now / math.sqrt(k * (k - 1)))
        before, now = now, (B * now - math.sqrt(k - 2) * before) / math.sqrt(k - 1)
    return found
