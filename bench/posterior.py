"""What infinitely wide networks predict: the NNGP posterior, and mean and covariance of an ensemble trained on MSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.predict import KernelPredictor


class Kernels(Protocol):
    """What `models.limits.infinite_width(net)(x1, x2)` returns: both kernels per output unit."""

    @property
    def nngp(self) -> Tensor: ...

    @property
    def ntk(self) -> Tensor: ...


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the outputs at test points, independent and alike for every output."""

    mean: Tensor  # [n_test, c]
    covariance: Tensor  # [n_test, n_test], of each of the c outputs


def nngp_posterior(train: Kernels, cross: Kernels, test: Kernels, y: Any, noise: float = 0.0) -> Posterior:
    """Bayesian inference with an infinitely wide network as the prior (Lee et al. 2018, eq. 8).

    Args:
        train, cross, test: kernels K(X, X) [n, n], K(X*, X) [n_test, n] and K(X*, X*) [n_test, n_test].
        y: labels [n, c].
        noise: variance of the labels' noise.

    Raises:
        ValueError: shapes that do not fit, or a negative noise.
    """
    prior, between = test.nngp.double(), cross.nngp.double()
    _check(train.nngp, between, prior)
    predictor = KernelPredictor(train.nngp, ridge=noise)
    mean = predictor.fit(y).predict(between)
    explained = between @ predictor.fit(between.T).weights
    return Posterior(mean, _symmetric(prior - explained))


def ntk_ensemble(
    train: Kernels,
    cross: Kernels,
    test: Kernels,
    y: Any,
    time: float | None = None,
    *,
    gamma: float = 1.0,
    centred: bool = False,
) -> Posterior:
    """Mean and covariance over initialisations of infinitely wide networks after gradient flow on 1/(2n) sum r^2.

    Lee et al. 2019, eqs. 14 and 15, with A = Theta^-1 (1 - exp(-Theta t / n)): the mean is Theta* A y, and what is
    left of the network at initialisation, f*(0) - Theta* A f(0), has the covariance.

    Args:
        train, cross, test: kernels K(X, X), K(X*, X) and K(X*, X*), as for `nngp_posterior`.
        y: labels [n, c].
        time: sum of the steps of gradient descent; None: to the end.
        gamma, centred: output scale of the network and whether its initial output is subtracted; anything but the
            plain network, gamma = 1 and not centred, has another covariance and is refused.

    Raises:
        ValueError: shapes that do not fit, a negative time, or a centred or scaled network.
    """
    if centred or gamma != 1:
        raise ValueError(
            f"gamma must be 1 and centred False, not {gamma:g} and {centred}: the ensemble's covariance is that of "
            "the uncentred network; for the mean of a centred one use KernelPredictor."
        )
    prior, between, tangent = test.nngp.double(), cross.nngp.double(), cross.ntk.double()
    _check(train.nngp, between, prior)
    predictor = KernelPredictor(train.ntk, time=time)
    mean = predictor.fit(y).predict(tangent)
    towards = tangent @ predictor.fit(between.T).weights  # Theta* A K(X, X*)
    halfway = tangent @ predictor.fit(train.nngp.double()).weights  # Theta* A K(X, X)
    twice = tangent @ predictor.fit(halfway.T).weights
    return Posterior(mean, _symmetric(prior - towards - towards.T + twice))


def _check(train: Tensor, cross: Tensor, test: Tensor) -> None:
    n, m = len(train), len(test)
    if train.shape != (n, n) or test.shape != (m, m) or cross.shape != (m, n):
        raise ValueError(
            "train, cross and test must be kernels [n, n], [n_test, n] and [n_test, n_test], not "
            f"{[list(k.shape) for k in (train, cross, test)]}."
        )


def _symmetric(covariance: Tensor) -> Tensor:
    """Exactly symmetric, and no variance below 0 by rounding."""
    covariance = (covariance + covariance.T) / 2
    return torch.diagonal_scatter(covariance, covariance.diagonal().clamp_min(0))
