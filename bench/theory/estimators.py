"""Test error estimated from a training set and its kernel alone, with no spectrum and no target: GCV, which is KARE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs

_INDEFINITE = 1e-8


@dataclass(frozen=True)
class TrainingSetEstimate:
    """Shapes: kappa that of the ridge; errors the same, with a last axis of outputs where y has one."""

    test_mse: Tensor  # on fresh labels, noise included
    train_mse: Tensor  # measured on these labels
    kappa: Tensor  # 1 / Tr (K + delta)^-1, eigenlearning's kappa


def gcv(k_train: Any, y: Any, ridge: Any = 0.0) -> TrainingSetEstimate:
    """n y^T (K + delta)^-2 y / (Tr (K + delta)^-1)^2, finite at delta = 0.

    Generalised cross-validation (Golub, Heath, Wahba 1979), the kernel alignment risk estimator (Jacot et al. 2020;
    Wei, Hu, Steinhardt 2022). It rests on a kernel that does not depend on this sample: for the after-kernel of a
    network on its own training set it is invalid. Without ridge a single set's estimate scatters widely.

    Args:
        k_train: [n, n].
        y: [n] or [n, c], the training labels.
        ridge: delta, on the Gram matrix, of any shape; for a singular kernel 0 is the limit of a small one.

    Raises:
        ValueError: not a kernel, not finite, a negative ridge, or shapes that do not fit.
    """
    kernel = inputs.float64("k_train", k_train)
    labels = inputs.float64("y", y, kernel.device)
    delta = inputs.at_least_zero("ridge", ridge, kernel.device)[..., None]
    n = len(kernel) if kernel.ndim else 0
    if n == 0 or kernel.shape != (n, n) or labels.ndim not in (1, 2) or len(labels) != n:
        raise ValueError(
            f"k_train must be [n, n] and y [n] or [n, c], not {list(kernel.shape)} and {list(labels.shape)}."
        )
    values, power = _spectrum(kernel, labels.reshape(n, -1))
    null = values == 0
    # Residual shares delta / (lambda + delta) up to a common factor, which the estimate does not depend on.
    limit = (delta == 0) & bool(null.any())
    shares = torch.where(limit, null.to(values.dtype), 1 / (torch.where(limit, 1.0, values + delta)))
    factor = torch.where(limit, 1.0, delta)
    trace = shares.sum(-1)
    residual = shares**2 @ power / n  # [..., c]
    test = residual * (n / trace[..., None]) ** 2
    train = residual * factor**2
    kappa = torch.where(limit[..., 0], 0.0, 1 / trace)
    if labels.ndim == 1:
        test, train = test[..., 0], train[..., 0]
    return TrainingSetEstimate(test, train, kappa)


def _spectrum(kernel: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Gram matrix, 0 below rounding, and the squared coefficients of the labels, [n, c]."""
    values, vectors = torch.linalg.eigh(kernel)
    largest = float(values[-1])
    if float(values[0]) < -_INDEFINITE * abs(largest):
        raise ValueError(
            f"k_train is not positive semidefinite: eigenvalues from {float(values[0]):.3g} to {largest:.3g}."
        )
    floor = len(values) * torch.finfo(values.dtype).eps * largest
    return torch.where(values > floor, values, 0.0), (vectors.T @ labels) ** 2
