"""The eigenlearning framework: generalisation of kernel regression from a spectrum and a target alone.

Simon, Dickens, Karkada, DeWeese, "The Eigenlearning Framework", TMLR 2023. Kernel K = sum_i lambda_i phi_i phi_i with
phi_i orthonormal under the distribution of the inputs, target f = sum_i v_i phi_i, n training points, label noise
sigma^2, and the predictor k(x, X) (K_XX + delta)^-1 y: **the ridge delta is on the unnormalised Gram matrix**, and
eigenvalues are those of the integral operator (of an M-point Gram matrix, divided by M).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs
from bench.theory.contract import contract, mode_sum, ratio
from bench.theory.solver import Tail, rank, solve


@dataclass(frozen=True)
class Eigenlearning:
    """Predictions for a batch; every tensor is float64 and differentiable in all that it came from.

    The batch axes of kappa come from eigenvalues, n and ridge; errors also have those of target_power and noise.
    "Level": with multiplicities each entry stands for m_i modes of one eigenvalue, and target_power for their sum.
    """

    eigenvalues: Tensor  # [..., modes]
    target_power: Tensor  # [..., modes], v^2
    multiplicities: Tensor | None
    n: Tensor
    ridge: Tensor
    noise: Tensor
    tail: Tensor
    missing: Tensor
    kappa: Tensor  # [...]; 0 without ridge from n = rank on, infinite at n = 0
    learnabilities: Tensor  # [..., modes], L_i = lambda_i / (lambda_i + kappa)
    unlearned: Tensor  # [..., modes], 1 - L_i = kappa / (lambda_i + kappa), without cancellation
    ridge_budget: Tensor  # [...], (delta + tail) / kappa; total_learnability + ridge_budget = n, the conservation law

    @cached_property
    def total_learnability(self) -> Tensor:
        """sum_i m_i L_i, [...]."""
        return mode_sum(self.learnabilities, self.multiplicities)

    @cached_property
    def _slack(self) -> Tensor:
        """n - sum_i m_i L_i^2, without cancellation."""
        return mode_sum(self.learnabilities * self.unlearned, self.multiplicities) + self.ridge_budget

    @cached_property
    def overfitting_coefficient(self) -> Tensor:
        """E_0 = n d kappa / d delta = n / (n - sum m L^2), the test MSE on unit noise, [...].

        Infinite without ridge at n = rank exactly, and n / (n - rank), that of least squares, beyond.
        """
        coefficient = ratio(self.n, self._slack, torch.inf)
        return torch.where(self.n == 0, 1.0, coefficient)

    @cached_property
    def _target_error(self) -> Tensor:
        """sum_i (1 - L_i)^2 v_i^2 + missing power."""
        return contract(self.unlearned**2, self.target_power) + self.missing

    @cached_property
    def test_mse(self) -> Tensor:
        """Mean squared error on fresh noisy labels, E_0 (sum (1 - L)^2 v^2 + sigma^2), [...]."""
        return product(self.overfitting_coefficient, self._target_error + self.noise)

    @cached_property
    def clean_test_mse(self) -> Tensor:
        """Mean squared error against the noise-free target, test_mse - sigma^2, [...]."""
        excess = product(self.overfitting_coefficient - 1, self.noise)
        return excess + product(self.overfitting_coefficient, self._target_error)

    @cached_property
    def train_mse(self) -> Tensor:
        """Mean squared error on the training labels, (delta / (n kappa))^2 test_mse, [...]."""
        total = self.ridge + self.tail
        # At n = 0, its limit: (delta + tail) / (n kappa) -> (delta + tail) / (sum m lambda + delta + tail).
        empty = ratio(total, mode_sum(self.eigenvalues, self.multiplicities) + total, 1.0)
        share = torch.where(self.n == 0, empty, ratio(self.ridge_budget, self.n, 0.0))
        slope = torch.where(self.n == 0, empty, ratio(self.ridge_budget, self._slack, 0.0))
        # The tail of the kernel does fit the training labels: only delta leaves a residual there.
        return share * slope * ratio(self.ridge, total, 1.0) ** 2 * (self._target_error + self.noise)

    @cached_property
    def bias(self) -> Tensor:
        """test_mse / E_0: squared error of the mean prediction, noise included, [...]."""
        return self._target_error + self.noise

    @cached_property
    def variance(self) -> Tensor:
        """test_mse (E_0 - 1) / E_0, over training sets, [...]."""
        return product(self.overfitting_coefficient - 1, self._target_error + self.noise)

    @cached_property
    def learnability(self) -> Tensor:
        """L(f) = sum L v^2 / sum v^2, [...]; NaN for f = 0."""
        return contract(self.learnabilities, self.target_power) / (self.target_power.sum(-1) + self.missing)

    @cached_property
    def coefficient_variance(self) -> Tensor:
        """Variance over training sets of each learned coefficient, L_i^2 test_mse / n, [..., modes].

        The mean is L_i v_i; covariances between different coefficients are 0. In a level, that of each of its modes.
        """
        per_sample = ratio(self.test_mse, self.n, 0.0)
        return product(per_sample[..., None], self.learnabilities**2)

    @cached_property
    def learnability_rates(self) -> Tensor:
        """dL_i / dn = L_i (1 - L_i) / (sum_j m_j L_j (1 - L_j) + delta / kappa), [..., modes].

        At n = 0, lambda_i / (sum m lambda + delta); 0 where kappa is 0.
        """
        total = mode_sum(self.eigenvalues, self.multiplicities) + self.ridge
        empty = ratio(self.eigenvalues, total[..., None], 0.0)
        rates = ratio(self.learnabilities * self.unlearned, self._slack[..., None], 0.0)
        return torch.where((self.n == 0)[..., None], empty, rates)

    @cached_property
    def mode_test_mse(self) -> Tensor:
        """Test MSE with each unit eigenfunction alone as the target, E_0 ((1 - L_i)^2 + sigma^2), [..., modes]."""
        return product(self.overfitting_coefficient[..., None], self.unlearned**2 + self.noise[..., None])

    def mean_squared_gradient(self, gradients: Any) -> Tensor:
        """E |grad f_hat|^2 = sum_i g_i (L_i^2 v_i^2 + m_i L_i^2 test_mse / n), [...].

        Args:
            gradients: [modes], g_i = E |grad phi_i|^2 with grad phi_i orthogonal to each other: k^2 on the unit
                circle, k (k + d - 2) on the unit sphere in d dimensions.
        """
        weight = inputs.power(gradients, self.eigenvalues, "gradients")
        spread = product(ratio(self.test_mse, self.n, 0.0), contract(self.learnabilities**2, self._counted(weight)))
        return contract(self.learnabilities**2 * weight, self.target_power) + spread

    def _counted(self, weight: Tensor) -> Tensor:
        return weight if self.multiplicities is None else weight * self.multiplicities


def eigenlearning(
    eigenvalues: Any,
    target_power: Any,
    n: Any,
    ridge: Any = 0.0,
    noise: Any = 0.0,
    multiplicities: Any = None,
    *,
    tail: Any = 0.0,
    missing: Any = 0.0,
) -> Eigenlearning:
    """Predictions of kernel (ridge) regression; kappa solves n = sum m L + delta / kappa.

    All arguments are numbers, lists, arrays or tensors, and their batch axes broadcast: a grid of 100 n and 5 targets
    is n [100, 1] with target_power [5, modes].

    Args:
        eigenvalues: [..., modes], at least 0, of any scale; zero modes are allowed and never learned (rounding noise of
            a decomposition above 0 counts as modes: `sample_spectrum` sets it to 0).
        target_power: [..., modes], squared coefficients of the target, summed within each level.
        n: number of training points, any real number of at least 0.
        ridge: delta, on the unnormalised Gram matrix.
        noise: variance of the noise on labels, of training and test.
        multiplicities: how many modes each eigenvalue stands for, above 0; None: one.
        tail: trace of the kernel that the spectrum leaves out, E K(x, x) - sum m lambda: acts as a ridge, except that
            it fits the training labels.
        missing: mean square of the target outside the modes: acts as noise, but is error of the target.

    Without ridge and from n = rank on, kappa is 0 and every mode above 0 is learned; test_mse is 0 where nothing
    else is in the target, and that of least squares, n / (n - rank) times the rest, where something is.

    Raises:
        ValueError: an argument is empty, negative, not finite, or of a shape that does not fit.
    """
    lam, counts = inputs.spectrum(eigenvalues, multiplicities)
    v2 = inputs.power(target_power, lam)
    points = inputs.at_least_zero("n", n, lam.device)
    delta = inputs.at_least_zero("ridge", ridge, lam.device)
    sigma2 = inputs.at_least_zero("noise", noise, lam.device)
    rest = inputs.at_least_zero("tail", tail, lam.device)
    unseen = inputs.at_least_zero("missing", missing, lam.device)
    batch = inputs.broadcast(eigenvalues=lam.shape[:-1], n=points.shape, ridge=delta.shape, tail=rest.shape)
    inputs.broadcast(kappa=batch, target_power=v2.shape[:-1], noise=sigma2.shape, missing=unseen.shape)
    total = (delta + rest).expand(batch)
    kappa = solve_kappa(lam, counts, points.expand(batch), total)
    learned, unlearned = occupations(lam, kappa)
    budget = _budget(lam, counts, points, total, kappa, unlearned)
    return Eigenlearning(lam, v2, counts, points, delta, sigma2, rest, unseen, kappa, learned, unlearned, budget)


def solve_kappa(eigenvalues: Tensor, multiplicities: Tensor | None, n: Tensor, ridge: Tensor) -> Tensor:
    """kappa of the batch shape of n and ridge, of checked float64 inputs; eigenvalues [..., modes] broadcast to it.

    0 without ridge from n = rank on, with the derivative 1 / (n - rank) in the ridge (at n = rank itself, where that
    derivative is infinite, 0); infinite at n = 0.
    """
    batch = n.shape
    lam, counts = rows(eigenvalues, multiplicities, batch)
    points, delta = n.reshape(-1), ridge.reshape(-1)
    support = rank(lam, counts)
    empty = points == 0
    saturated = (delta == 0) & (points >= support) & ~empty
    scale = lam.detach().amax(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    lam, strength = lam / scale[:, None], torch.where(saturated, 1.0, delta / scale)
    positive = torch.where(empty, 1.0, points)
    kappa = solve(lam, counts, positive, Tail(strength), *bracket(lam, counts, support, positive, strength))
    least_squares = ratio(delta, torch.where(saturated, points - support, 0.0), 0.0)
    kappa = torch.where(saturated, least_squares, kappa * scale)
    return torch.where(empty, torch.inf, kappa).reshape(batch)


def bracket(
    eigenvalues: Tensor, multiplicities: Tensor | None, support: Tensor, n: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of kappa [B]: delta / n and (rank - n) / sum(m / lambda) below, (sum m lambda + delta) / n above."""
    tiny = torch.finfo(n.dtype).tiny
    with torch.no_grad():
        inverse = mode_sum(torch.where(eigenvalues > 0, 1 / eigenvalues.clamp_min(tiny), 0.0), multiplicities)
        below = torch.maximum(strength / n, (support - n) / inverse.clamp(tiny, torch.finfo(n.dtype).max))
        above = (mode_sum(eigenvalues, multiplicities) + strength) / n
        # The bounds are met exactly by a single level: leave room for rounding.
        return (below * (1 - 1e-12)).clamp_min(tiny), (above * (1 + 1e-12)).clamp_min(tiny)


def occupations(eigenvalues: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """L = lambda / (lambda + kappa) and 1 - L = kappa / (lambda + kappa), [..., modes]; zero modes have L = 0."""
    column = kappa[..., None]
    if bool(((kappa > 0) & torch.isfinite(kappa)).all()):
        total = eigenvalues + column
        learned = eigenvalues / total
        return learned, torch.div(column, total, out=None if total.requires_grad else total)
    infinite = torch.isinf(column)
    column = torch.where(infinite, 1.0, column)
    total = eigenvalues + column
    idle = infinite | (total == 0)
    total = torch.where(idle, 1.0, total)
    return torch.where(idle, 0.0, eigenvalues / total), torch.where(idle, 1.0, column / total)


def _budget(
    eigenvalues: Tensor, multiplicities: Tensor | None, n: Tensor, ridge: Tensor, kappa: Tensor, unlearned: Tensor
) -> Tensor:
    """delta / kappa, and its limit n - rank where kappa is 0."""
    plain = ratio(ridge, torch.where(torch.isinf(kappa), 1.0, kappa), 0.0)
    plain = torch.where(torch.isinf(kappa), 0.0, plain)
    if not bool((kappa == 0).any()):
        return plain
    missing = mode_sum(torch.where(eigenvalues > 0, unlearned, 0.0), multiplicities)
    return torch.where(kappa == 0, n - rank(eigenvalues, multiplicities) + missing, plain)


def rows(eigenvalues: Tensor, multiplicities: Tensor | None, batch: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Spectrum and multiplicities as [1, modes] where the whole batch shares them, else [B, modes]."""
    modes = eigenvalues.shape[-1]
    if eigenvalues.shape[:-1].numel() == 1:
        flat = eigenvalues.reshape(1, modes)
        return flat, None if multiplicities is None else multiplicities.reshape(1, modes)
    flat = eigenvalues.expand(*batch, modes).reshape(-1, modes)
    return flat, None if multiplicities is None else multiplicities.expand(*batch, modes).reshape(-1, modes)


def product(coefficient: Tensor, error: Tensor) -> Tensor:
    """coefficient x error, 0 where the error is: an infinite coefficient of nothing is nothing."""
    return torch.where(error == 0, 0.0, torch.where(error == 0, 1.0, coefficient) * error)
