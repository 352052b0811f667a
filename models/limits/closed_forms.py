"""Activations whose dual maps E[phi(u) phi(v)] and E[phi'(u) phi'(v)] have a closed form.

(u, v) is Gaussian with variances q1, q2 and covariance k. The second map is the derivative of the first by k.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.activations import Abs, Cos, Erf, Exp, Gaussian, Hermite, Power, RectifiedPower, Sign, Sin, Square, Step
from models.limits.elementwise import by_quadrature, require_gaussian
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit

LARGEST_POWER = 20


def _result(k: Kernels, nngp: Tensor, slope: Tensor) -> Kernels:
    return replace(k, nngp=nngp, ntk=slope * k.ntk, gaussian=False)


def piecewise_linear(k: Kernels, right: float, left: float) -> Kernels:
    """phi(z) = right * z for z > 0, left * z for z < 0 (Cho & Saul 2009, arc-cosine kernels of order 1 and 0).

    phi is a combination of relu(z) and relu(-z), and J(k) - J(-k) = k / 2 for the ReLU's dual map J.
    """
    require_gaussian(k)
    bend, straight = (right - left) ** 2, right * left
    theta, p_sin = k.angle()
    share = theta.neg_().add_(math.pi).div_(2 * math.pi)  # P(u > 0, v > 0)
    relu_dual = torch.addcmul(p_sin.div_(2 * math.pi), share, k.nngp)
    nngp = relu_dual.mul_(bend).add_(k.nngp, alpha=straight)
    slopes = share.mul_(bend).add_(straight)
    return replace(k, nngp=nngp, ntk=slopes.mul_(k.ntk), gaussian=False)


def rectified_power(k: Kernels, n: int) -> Kernels:
    """relu(z)^n (Cho & Saul 2009, order n): for unit variances by Stein's recursion, and scaled."""
    require_gaussian(k)
    if n == 1:
        return piecewise_linear(k, 1.0, 0.0)
    theta, _ = k.angle()
    scale = k.q1.sqrt() * k.q2.sqrt()
    moments = _Rectified(theta)
    nngp = moments(n, n) * scale**n
    slope = moments(n - 1, n - 1) * scale ** (n - 1) * n**2 if n else torch.zeros_like(nngp)
    if n == 0:
        nngp = torch.where(scale > 0, nngp, 0.0)  # a step at 0 is 0
    return _result(k, nngp, slope)


class _Rectified:
    """E[u^a v^b] over u, v > 0 with a + b even, for unit variances at angle theta."""

    def __init__(self, theta: Tensor) -> None:
        self.theta, self.cos, self.sin = theta, theta.cos(), theta.sin()
        self.known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, a: int, b: int) -> Tensor:
        a, b = max(a, b), min(a, b)
        if (a, b) not in self.known:
            self.known[a, b] = self._moment(a, b)
        return self.known[a, b]

    def _moment(self, a: int, b: int) -> Tensor:
        if a == 0:
            return (math.pi - self.theta) / (2 * math.pi)
        if b == 0:  # by parts in v's place: the edge v = 0 contributes
            return (a - 1) * self(a - 2, 0) + self.cos * self.sin ** (a - 1) * _half_moment(a - 1)
        if a == 1:
            return self.sin * _half_moment(1) + self.cos * self(0, 0)
        return (a - 1) * self(a - 2, b) + self.cos * b * self(a - 1, b - 1)


def _half_moment(n: int) -> float:
    """E[z^n; z > 0] / sqrt(2 pi): what the edge of the half plane adds."""
    return 2 ** (n / 2 - 1) * math.gamma((n + 1) / 2) / math.sqrt(math.pi) / math.sqrt(2 * math.pi)


def polynomial(k: Kernels, coefficients: Sequence[float]) -> Kernels:
    """phi(z) = sum_i coefficients[i] z^i: E = sum_j k^j / j! E[phi^(j)(u)] E[phi^(j)(v)], which ends (Mehler)."""
    require_gaussian(k)
    slopes = [i * c for i, c in enumerate(coefficients)][1:]
    return _result(k, _polynomial_dual(k, list(coefficients)), _polynomial_dual(k, slopes))


def _polynomial_dual(k: Kernels, coefficients: list[float]) -> Tensor:
    total = torch.zeros_like(k.nngp)
    for j in range(len(coefficients) - 1, -1, -1):
        both = _mean_derivative(coefficients, j, k.q1) * _mean_derivative(coefficients, j, k.q2) / math.factorial(j)
        total = total * k.nngp + both
    return total


def _mean_derivative(coefficients: list[float], j: int, q: Tensor) -> Tensor:
    """E[phi^(j)(z)] for z of variance q."""
    total = torch.zeros_like(q)
    for i in range(len(coefficients) - 1, j - 1, -1):
        if (i - j) % 2 == 0:
            moment = math.prod(range(1, i - j, 2))
            total += coefficients[i] * math.factorial(i) / math.factorial(i - j) * moment * q ** ((i - j) // 2)
    return total


def _excess(k: Kernels) -> Tensor:
    """q1 q2 - k^2 without cancellation, exactly 0 on the diagonal."""
    if k.diagonal:
        return torch.zeros_like(k.nngp)
    scale = k.scale()
    return ((scale - k.nngp) * (scale + k.nngp)).clamp_min_(0)


def erf_dual(k: Kernels) -> Kernels:
    """Williams 1997, eq. 11, with arcsin(a / b) = atan2(a, sqrt(b^2 - a^2))."""
    require_gaussian(k)
    root = _excess(k).mul_(4).add_(2 * (k.q1 + k.q2)).add_(1).sqrt_()
    nngp = torch.atan2(2 * k.nngp, root).mul_(2 / math.pi)
    return _result(k, nngp, (4 / math.pi) / root)


def gelu_dual(k: Kernels) -> Kernels:
    """z P(Z < z) (Tsuchida et al. 2021): by parts, from E[P(Z < u) P(Z < v)] = 1/4 + arcsin(...) / (2 pi)."""
    require_gaussian(k)
    square = _excess(k).add_(k.q1 + k.q2).add_(1)  # (1 + q1) (1 + q2) - k^2
    root = square.sqrt()
    both = torch.atan2(k.nngp, root).div_(2 * math.pi).add_(0.25)
    density = 1 / (2 * math.pi * root)
    inverse = 1 / (1 + k.q1) + 1 / (1 + k.q2)
    nngp = k.nngp * both + density * (1 + square * (1 - inverse))
    slope = both + density * k.nngp * (1 / square + inverse)
    return _result(k, nngp, slope)


def gaussian_dual(k: Kernels) -> Kernels:
    """exp(-z^2): a Gaussian integral."""
    require_gaussian(k)
    square = _excess(k).mul_(4).add_(2 * (k.q1 + k.q2)).add_(1)
    nngp = square.rsqrt()
    return _result(k, nngp, 4 * k.nngp * nngp**3)


def exp_dual(k: Kernels) -> Kernels:
    """exp(z)."""
    require_gaussian(k)
    nngp = torch.exp((k.q1 + k.q2) / 2 + k.nngp)
    return _result(k, nngp, nngp)


def sine_dual(k: Kernels, cosine: bool) -> Kernels:
    """sin(z) or cos(z), without overflow of their sinh and cosh, and without cancellation for small k."""
    require_gaussian(k)
    size = k.nngp.abs()
    # |k| - (q1 + q2) / 2, exactly 0 for equal inputs
    exponent = (k.q1.sqrt() - k.q2.sqrt()) ** 2 / 2
    if not k.diagonal:
        exponent = exponent + (k.scale() - size).clamp_min_(0)
    top = torch.exp(-exponent) / 2
    even = top * (1 + torch.exp(-2 * size))
    odd = -top * torch.expm1(-2 * size) * k.nngp.sign()
    return _result(k, even, odd) if cosine else _result(k, odd, even)


def sign_dual(k: Kernels) -> Kernels:
    """-1, 0 or 1: the arc-cosine kernel of order 0; its derivative is 0, as autograd has it."""
    require_gaussian(k)
    theta, _ = k.angle()
    nngp = torch.where(k.q1 * k.q2 > 0, 1 - theta * (2 / math.pi), 0.0)
    return _result(k, nngp, torch.zeros_like(nngp))


def power(k: Kernels, exponent: Any) -> Kernels:
    """z^n for a whole n; any other exponent by quadrature, where it has one."""
    if isinstance(exponent, int | float) and exponent == int(exponent) and 0 <= exponent <= LARGEST_POWER:
        return polynomial(k, [0.0] * int(exponent) + [1.0])
    return by_quadrature(lambda z: z**exponent, k)


def hermite(k: Kernels, degree: int, normalised: bool) -> Kernels:
    """He_n(z), divided by sqrt(n!) if `normalised`."""
    if not 0 <= degree <= LARGEST_POWER:
        raise NoInfiniteWidthLimit(f"Hermite polynomials have a rule up to degree {LARGEST_POWER}, not {degree}")
    previous, current = [0.0], [1.0]
    for n in range(degree):
        shifted = [0.0, *current]
        lower = [*previous, *[0.0] * (len(shifted) - len(previous))]
        previous, current = current, [a - n * b for a, b in zip(shifted, lower, strict=True)]
    size = math.sqrt(math.factorial(degree)) if normalised else 1.0
    return polynomial(k, [c / size for c in current])


def _activation(dual: Callable[[Kernels], Kernels], module: type[nn.Module] | None, *functions: Any) -> None:
    if module is not None:
        rule(module, role="activation")(lambda m, k: dual(k))
    function_rule(*functions, role="activation")(lambda k, *args, **kwargs: dual(k))


_RELUS = (torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_activation(lambda k: piecewise_linear(k, 1.0, 0.0), nn.ReLU, *_RELUS)
_activation(lambda k: piecewise_linear(k, 1.0, -1.0), Abs, torch.abs, torch.absolute, abs, "abs", "absolute")
_activation(erf_dual, Erf, torch.erf, torch.special.erf, "erf")
_activation(gaussian_dual, Gaussian)
_activation(exp_dual, Exp, torch.exp, "exp")
_activation(lambda k: sine_dual(k, False), Sin, torch.sin, "sin")
_activation(lambda k: sine_dual(k, True), Cos, torch.cos, "cos")
_activation(sign_dual, Sign, torch.sign, torch.sgn, "sign", "sgn")
_activation(lambda k: rectified_power(k, 0), Step)
_activation(lambda k: power(k, 2), Square, torch.square, "square")
function_rule(torch.pow, operator.pow, "pow", role="activation")(power)
rule(Power, role="activation")(lambda module, k: power(k, module.exponent))
rule(RectifiedPower, role="activation")(lambda module, k: rectified_power(k, module.exponent))
rule(Hermite, role="activation")(lambda module, k: hermite(k, module.degree, normalised=True))
function_rule(torch.special.hermite_polynomial_he, role="activation")(lambda k, n: hermite(k, int(n), normalised=False))


@rule(nn.LeakyReLU, role="activation")
def leaky_relu(module: nn.LeakyReLU, k: Kernels) -> Kernels:
    return piecewise_linear(k, 1.0, module.negative_slope)


@function_rule(functional.leaky_relu, role="activation")
def _leaky_relu_function(k: Kernels, negative_slope: float = 0.01, inplace: bool = False) -> Kernels:
    return piecewise_linear(k, 1.0, negative_slope)


@rule(nn.GELU, role="activation")
def gelu(module: nn.GELU, k: Kernels) -> Kernels:
    return _gelu_function(k, module.approximate)


@function_rule(functional.gelu, role="activation")
def _gelu_function(k: Kernels, approximate: str = "none") -> Kernels:
    if approximate == "none":
        return gelu_dual(k)
    return by_quadrature(lambda z: functional.gelu(z, approximate=approximate), k)
