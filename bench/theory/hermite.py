"""The Hermite eigenstructure ansatz: spectrum and learning curve from the covariance of the data and the kernel alone.

Karkada, Turnbull, Liu, Simon, "Predicting kernel regression learning curves from only raw data statistics", 2025. For
roughly Gaussian data of covariance eigenvalues gamma_i, and a rotation-invariant kernel, whose values at the typical
norm |x|^2 = r^2 = sum gamma are K = sum_l c_l / l! (x . x')^l,

    lambda_a = c_|a| prod_i gamma_i^a_i,    phi_a = prod_i He_a_i(z_i) / sqrt(a_i!),    z_i = x_i / sqrt(gamma_i).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from bench.theory import inputs
from bench.theory.hermite_modes import Mode, largest_modes
from bench.theory.spectrum import Kernel, Spectrum, Target, column_targets, make_target
from bench.theory.zonal import first_row

_SPAN = 0.5  # cosines of the fit: all kernels are analytic within 1, and amplified rounding is least near here
_FIT = 28  # its degree: the error of the fit, 3.7^-28, is below rounding


@dataclass(frozen=True)
class HermiteSpectrum(Spectrum):
    """Eigenvalues from the largest on, and the monomial of each."""

    monomials: tuple[Mode, ...]

    def features(self, z: Tensor) -> Tensor:
        """The normalised Hermite products phi_a, [N, modes], of whitened data z [N, d] (see `Whitening`)."""
        used = sorted({i for mode in self.monomials for i in mode}) or [0]
        place_of = {dimension: place for place, dimension in enumerate(used)}
        factors = [[(mode.count(i), place_of[i]) for i in sorted(set(mode))] for mode in self.monomials]
        highest = max((power for row in factors for power, _ in row), default=0)
        tables = torch.stack(_hermite(z[:, used].T.to(torch.float64), highest))  # [power, used dimensions, N]
        most = max(map(len, factors))
        padded = torch.tensor([row + [(0, 0)] * (most - len(row)) for row in factors]).reshape(len(factors), most, 2)
        product = torch.ones(len(factors), len(z), dtype=torch.float64, device=z.device)
        for place in range(most):
            product = product * tables[padded[:, place, 0], padded[:, place, 1]]
        return product.T

    def target(self, z: Tensor, y: Any) -> Target:
        """Power of targets y [N] or [N, c] in the modes, from N > modes samples, without the bias of sampling.

        The features, orthogonalised in the order of their eigenvalues, give v = Q^T y / sqrt(N). The part outside
        the modes, of variance s^2 = unexplained / (1 - modes / N), leaks s^2 / N into each v^2: it is subtracted, and
        s^2 is the missing power. Where that leaves less than nothing, runs of neighbouring modes share their power.

        Raises:
            ValueError: not more samples than modes, or values that are not finite.
        """
        values, single = column_targets(inputs.float64("y", y, z.device))
        samples, modes = len(z), len(self.monomials)
        if len(values) != samples or samples <= modes:
            raise ValueError(f"z and y must have the same number of rows, above the {modes} modes, not {samples}.")
        basis, _ = torch.linalg.qr(self.features(z))
        squares = (values.T @ basis) ** 2 / samples  # [c, modes]
        mean_square = values.square().mean(0)
        outside = (mean_square - squares.sum(1)).clamp_min(0) / (1 - modes / samples)
        return make_target(_share(squares - outside[:, None] / samples), mean_square, single)


@dataclass(frozen=True)
class Whitening:
    """The principal axes of centred data."""

    mean: Tensor  # [d]
    axes: Tensor  # [d, d], columns, from the largest variance on
    variances: Tensor  # [d], gamma

    def __call__(self, x: Tensor) -> Tensor:
        """z [N, d'] of x [N, d]: unit variance, without the axes of variance 0."""
        kept = self.variances > 0
        return (x.to(torch.float64) - self.mean) @ self.axes[:, kept] / self.variances[kept].sqrt()


def whitening(x: Any) -> Whitening:
    """Of data [N, d], N > 1; variances below rounding are 0.

    Raises:
        ValueError: another shape, or not finite.
    """
    data = inputs.float64("x", x)
    if data.ndim != 2 or len(data) < 2:
        raise ValueError(f"x must be [N, d] with N at least 2, not {list(data.shape)}.")
    mean = data.mean(0)
    variances, axes = torch.linalg.eigh((data - mean).T @ (data - mean) / len(data))
    floor = len(variances) * torch.finfo(torch.float64).eps * variances[-1]
    return Whitening(mean, axes.flip(1), torch.where(variances > floor, variances, 0.0).flip(0))


def hermite_spectrum(kernel: Kernel, variances: Any, modes: int = 1000, degrees: int = 5) -> HermiteSpectrum:
    """The largest `modes` of the ansatz, up to this degree; the rest of the trace is the tail.

    Args:
        kernel: rotation-invariant, for inputs of as many dimensions as there are variances, centred like the data.
        variances: [d], gamma, in any order.
        modes: how many.
        degrees: the highest, 0 to 10; in few effective dimensions the series of ReLU networks is asymptotic.

    Raises:
        ValueError: an argument out of range, or a kernel with a negative coefficient.
    """
    gamma = inputs.at_least_zero("variances", variances)
    if gamma.ndim != 1 or len(gamma) < 2 or float(gamma.sum()) == 0:
        raise ValueError(f"variances must be [d] with d at least 2 and not all 0, not {list(gamma.shape)}.")
    if not isinstance(modes, int) or modes < 1:
        raise ValueError(f"modes must be a whole number of at least 1, not {modes!r}.")
    gamma = gamma.sort(descending=True).values
    radius = float(gamma.sum()) ** 0.5
    series, diagonal = level_coefficients(kernel, len(gamma), radius, degrees)
    found = largest_modes(gamma.tolist(), series, modes)
    if not found:
        raise ValueError("The kernel is 0 in every degree asked for: there is no mode.")
    eigenvalues = torch.tensor([value for value, _ in found], dtype=torch.float64, device=gamma.device)
    # Trace of the ansatz itself, which in few effective dimensions is above K(x, x), and of the degrees beyond.
    within = sum(c * h for c, h in zip(series, _complete_symmetric(gamma, degrees), strict=True))
    beyond = diagonal - sum(c * radius ** (2 * degree) / math.factorial(degree) for degree, c in enumerate(series))
    trace = torch.as_tensor(within + max(0.0, float(beyond)), dtype=torch.float64, device=gamma.device)
    return HermiteSpectrum(eigenvalues, None, trace, tuple(mode for _, mode in found))


def level_coefficients(kernel: Kernel, d: int, radius: float, degrees: int) -> tuple[list[float], Tensor]:
    """c_0, c_1, ... of K = sum_l c_l / l! (x . x')^l on the sphere of this radius in d >= 2 dimensions, and K(x, x).

    From a Chebyshev fit in the cosine around 0. Coefficients below the fit's rounding are 0 (the relative error of the
    others is 1e-4 or better up to degree 8 for networks).

    Raises:
        ValueError: degrees out of range, or a coefficient negative beyond rounding.
    """
    if not isinstance(degrees, int) or not 0 <= degrees <= 10:
        raise ValueError(f"degrees must be a whole number from 0 to 10, not {degrees!r}.")
    nodes = chebyshev.chebpts1(_FIT + 1)
    cosines = torch.from_numpy(_SPAN * nodes)
    points = torch.zeros(len(cosines) + 1, d, dtype=torch.float64)
    points[0, 0] = radius
    points[1:, 0], points[1:, 1] = radius * cosines, radius * (1 - cosines**2).sqrt()
    row = first_row(kernel, points).cpu()
    to_powers = np.stack([_padded(chebyshev.cheb2poly(unit)) for unit in np.eye(_FIT + 1)], 1)  # [power, Chebyshev]
    fitted = np.linalg.solve(chebyshev.chebvander(nodes, _FIT), row[1:].numpy())
    taylor = to_powers @ fitted
    rounding = 4 * np.finfo(float).eps * np.abs(row.numpy()).max() * np.abs(to_powers).sum(1)
    coefficients = []
    for degree in range(degrees + 1):
        if taylor[degree] < -rounding[degree]:
            raise ValueError(f"The kernel has a negative coefficient of degree {degree}: it has no Hermite spectrum.")
        scale = math.factorial(degree) / (_SPAN * radius**2) ** degree
        coefficients.append(float(taylor[degree]) * scale if taylor[degree] > rounding[degree] else 0.0)
    return coefficients, row[0]


def _complete_symmetric(variances: Tensor, degrees: int) -> list[float]:
    """h_l, the sum of all products of l variances with repetition: l h_l = sum_k p_k h_(l-k), p_k the power sums."""
    powers = [float((variances**k).sum()) for k in range(degrees + 1)]
    sums = [1.0]
    for level in range(1, degrees + 1):
        sums.append(sum(powers[k] * sums[level - k] for k in range(1, level + 1)) / level)
    return sums


def _padded(polynomial: np.ndarray) -> np.ndarray:
    return np.pad(polynomial, (0, _FIT + 1 - len(polynomial)))


def _hermite(z: Tensor, highest: int) -> list[Tensor]:
    """He_n(z) / sqrt(n!) for n = 0 to `highest`, by sqrt(n + 1) h_(n+1) = z h_n - sqrt(n) h_(n-1)."""
    table = [torch.ones_like(z), z][: highest + 1]
    for n in range(1, highest):
        table.append((z * table[n] - math.sqrt(n) * table[n - 1]) / math.sqrt(n + 1))
    return table


def _share(power: Tensor) -> Tensor:
    """Non-negative power [c, modes]: of the mean of the nearest rising curves above and below the cumulative power.

    Clipping instead would add the noise of the many modes in which the target has nothing.
    """
    cumulative = power.cumsum(1)
    above = cumulative.cummax(1).values
    below = cumulative.flip(1).cummin(1).values.flip(1)
    rising = ((above + below) / 2).clamp_min(0)
    return rising.diff(dim=1, prepend=torch.zeros_like(rising[:, :1]))
