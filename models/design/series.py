"""Taylor coefficients of the kernels of deep ReLU and erf networks, by arithmetic with power series.

A series is its coefficients [T + 1] in the cosine c, float64, truncated after order T.
"""

from __future__ import annotations

import math

import numpy as np

Series = np.ndarray


def deep_taylor(name: str, depth: int, kind: str, order: int, w_std: float, b_std: float) -> list[float]:
    """Taylor coefficients in c, to `order`, of a network of `depth` hidden layers ("relu" or "erf") on |x|^2 = d.

    All biases trained; the read-out has w_std 1 and no bias: Lee et al. 2019, with the dual maps of Cho & Saul 2009
    and Williams 1997.
    """
    dual = {"relu": _relu, "erf": _erf}[name]
    w2, b2 = w_std**2, b_std**2
    covariance = np.zeros(order + 1)
    covariance[0] = b2
    if order:
        covariance[1] = w2
    tangent, variance = covariance, w2 + b2
    for layer in range(depth):
        last = layer == depth - 1
        value, slope, at_one = dual(covariance, variance)
        scale, bias = (1.0, 0.0) if last else (w2, b2)
        covariance = scale * value
        covariance[0] += bias
        tangent = covariance + scale * times(slope, tangent)
        variance = scale * at_one + bias
    return [float(a) for a in (tangent if kind == "ntk" else covariance)]


def _relu(covariance: Series, variance: float) -> tuple[Series, Series, float]:
    rho = covariance / variance
    one = np.zeros_like(rho)
    one[0] = 1
    root = square_root(one - times(rho, rho))
    slope = arcsine(rho, root) / (2 * math.pi)
    slope[0] += 1 / 4
    return variance * (root / (2 * math.pi) + times(slope, rho)), slope, variance / 2


def _erf(covariance: Series, variance: float) -> tuple[Series, Series, float]:
    rho = 2 * covariance / (1 + 2 * variance)
    one = np.zeros_like(rho)
    one[0] = 1
    root = square_root(one - times(rho, rho))
    value = arcsine(rho, root) * (2 / math.pi)
    return (
        value,
        divide(one, root) * (4 / math.pi / (1 + 2 * variance)),
        2 / math.pi * math.asin(2 * variance / (1 + 2 * variance)),
    )


def times(a: Series, b: Series) -> Series:
    return np.convolve(a, b)[: len(a)]


def divide(a: Series, b: Series) -> Series:
    """a / b for b[0] != 0."""
    quotient = np.zeros_like(a)
    for k in range(len(a)):
        quotient[k] = (a[k] - quotient[:k] @ b[k:0:-1]) / b[0]
    return quotient


def square_root(a: Series) -> Series:
    """For a[0] > 0."""
    root = np.zeros_like(a)
    root[0] = math.sqrt(a[0])
    for k in range(1, len(a)):
        root[k] = (a[k] - root[1:k] @ root[k - 1 : 0 : -1]) / (2 * root[0])
    return root


def arcsine(a: Series, root: Series) -> Series:
    """arcsin(a), with root = sqrt(1 - a^2): the integral of a' / root."""
    orders = np.arange(1, len(a))
    derivative = np.append(orders * a[1:], 0.0)
    result = np.empty_like(a)
    result[0] = math.asin(a[0])
    result[1:] = divide(derivative, root)[:-1] / orders
    return result
