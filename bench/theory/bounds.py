"""What holds exactly or at the edges: one training point, the slope at n = 0, and the parity bound."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from bench.theory import inputs
from bench.theory.contract import contract, mode_sum


def first_point_mse(
    eigenvalues: Any,
    target_power: Any,
    ridge: Any = 0.0,
    noise: Any = 0.0,
    multiplicities: Any = None,
) -> Tensor:
    """Test MSE of one training point, on fresh noisy labels, [...]: exact for kernels on a homogeneous domain.

    There K(x, x) = T = sum m lambda and |K(x, .)|^2 = S = sum m lambda^2 are the same for every x, and with one point
    f_hat = K(x, x_1) y_1 / (T + delta), so the mean over x_1 is

        sum v^2 (1 - 2 lambda / (T + delta)) + (sum v^2 + sigma^2) S / (T + delta)^2 + sigma^2.

    Without ridge and noise, for a unit eigenfunction, it is 1 + the slope dE/dn of eigenlearning at n = 0.
    Arguments and errors as in `eigenlearning`; the spectrum must hold a mode above 0.
    """
    lam, counts = inputs.spectrum(eigenvalues, multiplicities)
    v2 = inputs.power(target_power, lam)
    delta = inputs.at_least_zero("ridge", ridge, lam.device)
    sigma2 = inputs.at_least_zero("noise", noise, lam.device)
    diagonal = _trace(lam, counts) + delta
    learned = mode_sum(lam**2, counts) / diagonal**2
    return contract(1 - 2 * lam / diagonal[..., None], v2) + (v2.sum(-1) + sigma2) * learned + sigma2


def initial_slopes(eigenvalues: Any, multiplicities: Any = None) -> Tensor:
    """dE/dn at n = 0 without ridge and noise, for each unit eigenfunction as the target, [..., modes].

    sum m lambda^2 / (sum m lambda)^2 - 2 lambda_k / sum m lambda: positive, so that the first points make the error
    *worse than chance*, for every mode below sum m lambda^2 / (2 sum m lambda).
    """
    lam, counts = inputs.spectrum(eigenvalues, multiplicities)
    diagonal = _trace(lam, counts)
    return (mode_sum(lam**2, counts) / diagonal**2)[..., None] - 2 * lam / diagonal[..., None]


class ParityBound(NamedTuple):
    learnability: Tensor  # at most this
    mse: Tensor  # at least this


def parity_bound(n: Any, d: int) -> ParityBound:
    """Bounds for the parity of all d bits under kernels of x . x' with non-negative Taylor coefficients.

    Its eigenvalues fall within each class of even and odd levels, lambda_d <= lambda_(d-2) <= ..., so the parity has
    the lowest learnability of the 2^(d-1) modes of its class, and these sum to at most n: L <= n / 2^(d-1), and
    E >= (1 - L)^2.

    Raises:
        ValueError: n is negative, or d is below 1.
    """
    if d < 1:
        raise ValueError(f"d must be at least 1, not {d}.")
    learnability = (inputs.at_least_zero("n", n) / 2.0 ** (d - 1)).clamp_max(1)
    return ParityBound(learnability, (1 - learnability) ** 2)


def points_for_parity(mse: Any, d: int) -> Tensor:
    """The least n at which the error of the parity of d bits can be `mse` (0 to 1), (1 - sqrt(mse)) 2^(d-1).

    Raises:
        ValueError: mse is negative, or d is below 1.
    """
    if d < 1:
        raise ValueError(f"d must be at least 1, not {d}.")
    return (1 - inputs.at_least_zero("mse", mse).sqrt()).clamp_min(0) * 2.0 ** (d - 1)


def _trace(eigenvalues: Tensor, multiplicities: Tensor | None) -> Tensor:
    trace = mode_sum(eigenvalues, multiplicities)
    if bool((trace == 0).any()):
        raise ValueError("eigenvalues must hold at least one above 0: here all are 0.")
    return trace
