"""What a design aims at: a kernel as a function of the cosine between inputs on the sphere |x|^2 = radius^2 d."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models.checks import unknown
from models.design.hermite import check_coefficients
from models.design.series import deep_taylor
from models.limits import InfiniteWidth, infinite_width
from models.mlp import mlp

NAMES = ("relu", "erf")
W_STD, B_STD = 2**0.5, 0.1  # of the named networks; read-out 1, without bias
DEEPEST = 100  # hidden layers of a named network
ORDERS = 10  # Taylor coefficients read off a callable
POINTS = 28  # Chebyshev points on [-1/2, 1/2] for these: singularities at +-1 give an error of 3.7^-28
HARMONICS = 64  # harmonics of a callable looked at on the circle
NOISE = 1e-9  # of K(1): a callable's own rounding
SIZES = (1e-100, 1e100)  # of K(1): the certificate squares it


@dataclass(frozen=True)
class Target:
    """A kernel K(c) on [-1, 1]."""

    name: str
    kernel: Callable[[Tensor], Tensor]  # cosines [N], float64 -> [N]
    taylor: Callable[[int], list[float]]  # order -> coefficients 0 .. order
    order: int | None = None  # of a polynomial

    @cached_property
    def at_one(self) -> float:
        """K(1); ValueError where it is not positive, or too small or large for its square."""
        value, (low, high) = float(self.kernel(torch.ones(1, dtype=torch.float64))[0]), SIZES
        if not value > 0:
            raise ValueError(f"target must have K(1) > 0, not {value:g}.")
        if not low <= value <= high:
            raise ValueError(f"target must have K(1) from {low:g} to {high:g}, not {value:g}: scale it.")
        return value


def from_coefficients(coefficients: list[float]) -> Target:
    """sum_k a_k c^k; ValueError for a negative a_k."""
    a = check_coefficients(coefficients)

    def kernel(c: Tensor) -> Tensor:
        total = torch.zeros_like(c)
        for a_k in reversed(a):
            total = total * c + a_k
        return total

    return Target("coefficients", kernel, lambda order: a[: order + 1], len(a) - 1)


def from_name(name: str, kind: str) -> Target:
    """ "relu:L" or "erf:L": L hidden layers, w_std^2 = 2, b_std = .1, read-out 1 without bias, on |x|^2 = d."""
    activation, colon, layers = name.partition(":")
    if not colon or not layers.isdecimal():
        raise ValueError(f"target {name!r} must be 'relu:L' or 'erf:L' with L hidden layers, as in 'relu:4'.")
    if activation not in NAMES:
        raise unknown("activation of a named target", activation, NAMES)
    if len(layers) > len(str(DEEPEST)) or not 1 <= int(layers) <= DEEPEST:
        raise ValueError(f"target {name[:20]!r}: the hidden layers must be a whole number from 1 to {DEEPEST}.")
    depth = int(layers)
    limit = infinite_width(mlp(2, 1, depth, 1, activation, w_std=W_STD, b_std=B_STD))
    return Target(
        name,
        lambda c: _on_circle(limit, 2, c, kind, 1.0),
        lambda order: deep_taylor(activation, depth, kind, order, W_STD, B_STD),
    )


def from_limit(limit: InfiniteWidth, kind: str, radius: float) -> Target:
    """The kernel of any network that treats all directions of its inputs alike; ValueError for another."""
    features = _features(limit)
    cosines = torch.linspace(-1, 1, 5, dtype=torch.float64)
    plain = _on_circle(limit, features, cosines, kind, radius)
    turned = _on_circle(limit, features, cosines, kind, radius, turned=True)
    if not torch.allclose(plain, turned, rtol=1e-6):
        raise ValueError(
            "target: the kernel of this network is no function of the cosine between inputs, "
            "so it cannot be designed; its first layer must be fully connected."
        )
    return from_callable(lambda c: _on_circle(limit, features, c, kind, radius), "limit")


def from_callable(kernel: Callable[[Tensor], Tensor], name: str = "callable") -> Target:
    """K(c) for cosines [N] in float64; ValueError where it is not finite, or has a negative coefficient."""

    def checked(c: Tensor) -> Tensor:
        try:
            values = torch.as_tensor(kernel(c), dtype=torch.float64)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"target must map float64 cosines [N] to K(c) [N]: {error}") from error
        if values.shape != c.shape or not bool(torch.isfinite(values).all()):
            raise ValueError("target must return one finite number for each cosine in [-1, 1].")
        return values

    target = Target(name, checked, lambda order: _taylor(checked, order)[0])
    at_one = target.at_one
    for order, (a, noise) in enumerate(zip(*_taylor(checked, ORDERS), strict=True)):
        if a < -noise - NOISE * at_one:
            raise _not_realisable(f"Taylor coefficient {a:.3g} at order {order}")
    for order, a in reversed(list(enumerate(_harmonics(checked)))):  # the top one is the top Taylor coefficient's
        if a < -NOISE * at_one:
            raise _not_realisable(f"harmonic {a:.3g} at order {order} on the circle")
    return target


def _not_realisable(what: str) -> ValueError:
    return ValueError(
        f"target has the negative {what}: a kernel that is positive semi-definite on spheres of every dimension has "
        "none, so no wide network realises it."
    )


def _taylor(kernel: Callable[[Tensor], Tensor], order: int) -> tuple[list[float], list[float]]:
    """Coefficients at 0 and bounds of their rounding, by interpolation on [-1/2, 1/2] in Chebyshev points."""
    if order > ORDERS:
        raise ValueError(f"the Taylor coefficients of a callable are known to order {ORDERS}, not {order}.")
    points = np.cos((np.arange(POINTS) + 0.5) * math.pi / POINTS)
    values = kernel(torch.from_numpy(points / 2)).numpy()
    series = np.polynomial.chebyshev.chebfit(points, values, POINTS - 1)
    rounding = 4 * np.finfo(float).eps * np.abs(values).max()
    kept = int(np.flatnonzero(np.abs(series) > rounding).max(initial=order)) + 1
    powers = np.array([_powers(n, order) for n in range(kept)])  # of T_n(2 c) in c
    return (series[:kept] @ powers).tolist(), (rounding * np.abs(powers).sum(0)).tolist()


def _powers(degree: int, order: int) -> np.ndarray:
    powers = np.zeros(order + 1)
    found = np.polynomial.chebyshev.cheb2poly([0.0] * degree + [1.0])[: order + 1]
    powers[: len(found)] = found
    return powers * 2.0 ** np.arange(order + 1)


def _harmonics(kernel: Callable[[Tensor], Tensor]) -> list[float]:
    """K(cos t) = sum_n k_n cos(n t), by a discrete transform: aliases of a positive semi-definite kernel only add."""
    theta = torch.arange(2 * HARMONICS, dtype=torch.float64) * (math.pi / HARMONICS)
    return (torch.fft.rfft(kernel(torch.cos(theta))).real / HARMONICS).tolist()


def _features(limit: InfiniteWidth) -> int:
    for module in limit.program.root.modules():
        features = getattr(module, "in_features", None)
        if isinstance(features, int):
            return features
    raise ValueError("target: the network must start with a fully connected layer, after at most a flattening.")


def _on_circle(
    limit: InfiniteWidth, features: int, c: Tensor, kind: str, radius: float, turned: bool = False
) -> Tensor:
    """K between one input and inputs at these cosines, all of |x|^2 = radius^2 features."""
    if features < 2:
        raise ValueError("target: the network must have at least two input features.")
    # By sine and cosine of half the angle: gram matrices near c = 1 keep their digits.
    theta = torch.arccos(c.clamp(-1, 1))
    inputs = c.new_zeros(len(c) + 1, features)
    inputs[0, 0] = 1
    inputs[1:, 0], inputs[1:, 1] = torch.cos(theta), torch.sin(theta)
    if turned:
        frame = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(features, features))))[0]
        inputs = inputs @ frame
    inputs = inputs * (radius * math.sqrt(features))
    found = limit(inputs[:1], inputs[1:])
    values = (found.ntk if kind == "ntk" else found.nngp)[0]
    exact = c >= 1
    if bool(exact.any()):  # the diagonal, which the limit knows exactly
        own = limit(inputs[:1])
        values = torch.where(exact, (own.ntk if kind == "ntk" else own.nngp)[0, 0], values)
    return values
