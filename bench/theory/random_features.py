"""Random features: regression on k random features, a theory of networks of finite width whose last layer trains.

Simon, Karkada, Ghosh, Belkin, "More is better in modern machine learning", ICLR 2024. The features are normalised so
that psi psi^T / k estimates the kernel. With L_i = lambda_i / (lambda_i + g), z = sum m L, q = sum m L^2:

    z + delta / kappa = n,    z + k kappa / g = k.

Eliminating kappa, (n - z) (k - z) = delta k / g; with s = min(n, k) - z the equation is z + s(g) = min(n, k) and
s (s + |n - k|) = delta k / g, which is the solver's. Their test error, rewritten with c = k - z, d = z - q and
s = delta / kappa so that nothing cancels:

    E_te = n / (s + d c / (c + d)) * (sum_i (1 - L_i) [(1 - L_i) + L_i d / (c + d)] v_i^2 + sigma^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs
from bench.theory.contract import contract, mode_sum, ratio
from bench.theory.eigenlearning import bracket, occupations, product, rows
from bench.theory.solver import Tail, rank, solve


@dataclass(frozen=True)
class RandomFeatures:
    """Predictions for a batch; float64 and differentiable. The limit of many features is `Eigenlearning`."""

    target_power: Tensor  # [..., modes]
    multiplicities: Tensor | None
    n: Tensor
    features: Tensor
    noise: Tensor
    feature_kappa: Tensor  # [...], g
    kappa: Tensor  # [...], g (k - z) / k
    learnabilities: Tensor  # [..., modes], L_i = lambda_i / (lambda_i + g)
    unlearned: Tensor  # [..., modes], 1 - L_i
    ridge_budget: Tensor  # [...], s = delta / kappa = n - z
    feature_budget: Tensor  # [...], c = k - z

    @cached_property
    def _rates(self) -> Tensor:
        """d = sum_i m_i L_i (1 - L_i)."""
        return mode_sum(self.learnabilities * self.unlearned, self.multiplicities)

    @cached_property
    def overfitting_coefficient(self) -> Tensor:
        """Test MSE on unit noise, [...]; infinite without ridge at n = k, the double-descent peak."""
        features = ratio(self._rates * self.feature_budget, self.feature_budget + self._rates, 0.0)
        return torch.where(self.n == 0, 1.0, ratio(self.n, self.ridge_budget + features, torch.inf))

    @cached_property
    def _bracket(self) -> Tensor:
        share = ratio(self._rates, self.feature_budget + self._rates, 1.0)[..., None]
        return contract(self.unlearned * (self.unlearned + self.learnabilities * share), self.target_power) + self.noise

    @cached_property
    def test_mse(self) -> Tensor:
        """Mean squared error on fresh noisy labels, noise included, [...]."""
        return product(self.overfitting_coefficient, self._bracket)

    @cached_property
    def train_mse(self) -> Tensor:
        """Mean squared error on the training labels, (delta / (n kappa))^2 test_mse, [...]."""
        coefficient = torch.where(torch.isinf(self.overfitting_coefficient), 0.0, self.overfitting_coefficient)
        return ratio(self.ridge_budget, self.n, 0.0) ** 2 * coefficient * self._bracket

    @cached_property
    def learnability(self) -> Tensor:
        """sum L v^2 / sum v^2, [...]."""
        return contract(self.learnabilities, self.target_power) / self.target_power.sum(-1)


def random_features(
    eigenvalues: Any,
    target_power: Any,
    n: Any,
    features: Any,
    ridge: Any = 0.0,
    noise: Any = 0.0,
    multiplicities: Any = None,
) -> RandomFeatures:
    """Predictions for ridge regression on k random features.

    Arguments as in `eigenlearning`; `features` is k, above 0, and n is above 0; both broadcast with the rest. The ridge
    is on the Gram matrix psi psi^T / k.

    Raises:
        ValueError: an argument is empty, negative, not finite, or of a shape that does not fit.
    """
    lam, counts = inputs.spectrum(eigenvalues, multiplicities)
    v2 = inputs.power(target_power, lam)
    points = inputs.above_zero("n", n, lam.device)
    width = inputs.above_zero("features", features, lam.device)
    delta = inputs.at_least_zero("ridge", ridge, lam.device)
    sigma2 = inputs.at_least_zero("noise", noise, lam.device)
    batch = inputs.broadcast(eigenvalues=lam.shape[:-1], n=points.shape, features=width.shape, ridge=delta.shape)
    inputs.broadcast(kappa=batch, target_power=v2.shape[:-1], noise=sigma2.shape)
    g = _solve(lam, counts, points.expand(batch), width.expand(batch), delta.expand(batch))
    learned, unlearned = occupations(lam, g)
    # The smaller of n - z and k - z is the solver's tail, the other the same plus |n - k|: no cancellation.
    missing = mode_sum(torch.where(lam > 0, unlearned, 0.0), counts)
    saturated = g == 0
    level = ratio(delta * width, torch.where(saturated, 0.0, g), 0.0)
    smaller, _ = Tail(level, (points - width).abs())(torch.ones_like(level))
    smaller = torch.where(saturated, torch.minimum(points, width) - rank(lam, counts) + missing, smaller)
    ridge_budget = smaller + (points - width).clamp_min(0)
    feature_budget = smaller + (width - points).clamp_min(0)
    kappa = g * feature_budget / width
    return RandomFeatures(v2, counts, points, width, sigma2, g, kappa, learned, unlearned, ridge_budget, feature_budget)


def _solve(eigenvalues: Tensor, multiplicities: Tensor | None, n: Tensor, features: Tensor, ridge: Tensor) -> Tensor:
    """g of the batch shape of the last three; 0 without ridge from min(n, k) = rank on (see `solve_kappa`)."""
    batch = n.shape
    lam, counts = rows(eigenvalues, multiplicities, batch)
    points, width, delta = n.reshape(-1), features.reshape(-1), ridge.reshape(-1)
    support, fewer, gap = rank(lam, counts), torch.minimum(points, width), (points - width).abs()
    saturated = (delta == 0) & (fewer >= support)
    scale = lam.detach().amax(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    lam, delta = lam / scale[:, None], torch.where(saturated, 1.0, delta / scale)
    lower, _ = bracket(lam, counts, support, fewer, delta * fewer / points)
    with torch.no_grad():  # z <= sum m lambda / g and s <= sqrt(delta k / g) are both at most min(n, k) / 2 above this
        upper = torch.maximum(2 * mode_sum(lam, counts) / fewer, 4 * delta * width / fewer**2)
    g = solve(lam, counts, fewer, Tail(delta * width, gap), lower, upper) * scale
    rest = torch.where(saturated, fewer - support, 0.0)
    limit = ratio(ridge.reshape(-1) * width, rest * (rest + gap), 0.0)  # of a small ridge: 0, with its derivative
    return torch.where(saturated, limit, g).reshape(batch)
