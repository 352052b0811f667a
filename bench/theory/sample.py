"""Spectrum of any kernel on any finite sample: the eigendecomposition of its Gram matrix, scaled to the operator's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs
from bench.theory.spectrum import Spectrum, Target, column_targets, make_target

_INDEFINITE = 1e-8


@dataclass(frozen=True)
class SampleSpectrum(Spectrum):
    """All M modes of M points, from the largest on; their mean over the points is the expectation.

    As a stand-in for the distribution the points came from, it serves n far below M. Where training sets are drawn from
    the M points themselves, `finite_population` is exact in n / M.
    """

    eigenfunctions: Tensor  # [M points, M modes], orthonormal: the mean of phi_i phi_j is d_ij

    def coefficients(self, y: Any) -> Tensor:
        """v_i = mean of phi_i y: [modes] for y [M], [c, modes] for y [M, c]; their squares sum to the mean square."""
        values, single = column_targets(inputs.float64("y", y, self.eigenfunctions.device))
        if len(values) != len(self.eigenfunctions):
            raise ValueError(f"y must have a row for each of the {len(self.eigenfunctions)} points, not {len(values)}.")
        found = values.T @ self.eigenfunctions / len(values)
        return found[0] if single else found

    def target(self, y: Any) -> Target:
        """Power of targets y [M] or [M, c]."""
        found = self.coefficients(y)
        power = found.reshape(-1, found.shape[-1]) ** 2
        return make_target(power, power.sum(-1), found.ndim == 1)


def sample_spectrum(kernel: Any) -> SampleSpectrum:
    """Of the Gram matrix [M, M]: eigenvalues divided by M, those below rounding (M eps of the largest) set to 0.

    Raises:
        ValueError: not square, not symmetric, not finite, or not positive semidefinite.
    """
    gram = inputs.float64("kernel", kernel)
    points = len(gram) if gram.ndim else 0
    if points == 0 or gram.shape != (points, points):
        raise ValueError(f"kernel must be [M, M], not {list(gram.shape)}.")
    largest = float(gram.abs().amax())
    if float((gram - gram.T).abs().amax()) > 1e-6 * largest:
        raise ValueError(
            "kernel must be symmetric: K(x, x') and K(x', x) differ by more than 1e-6 of the largest entry."
        )
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    top = float(values[-1])
    if float(values[0]) < -_INDEFINITE * abs(top):
        raise ValueError(f"kernel must be positive semidefinite: eigenvalues from {float(values[0]):.3g} to {top:.3g}.")
    floor = points * torch.finfo(values.dtype).eps * top
    values = torch.where(values > floor, values, 0.0).flip(0) / points
    return SampleSpectrum(values, None, gram.diagonal().mean(), vectors.flip(1) * points**0.5)
