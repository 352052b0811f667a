"""Sampling without replacement: n of the M points of a finite domain, where plain eigenlearning is up to 60 % off.

The trained points are a random projection P of all M, and K_MM has eigenvalues M lambda_i. For large M (free
compression), with mu = delta / M and R = P^T (P K P^T + delta)^-1 P,

    E[R] = (K + M kappa)^-1,    sum_i (lambda_i + mu) / (lambda_i + kappa) = n,

and E[R B R] = - d E[R] / dK in the direction B gives the second moments: B = K^2 the error over all M points, B = 1 the
error on the training points. The equation is eigenlearning's for eigenvalues lambda + mu without ridge, of root
kappa - mu: so kappa is eigenlearning's iff delta = 0, and the error only if there is no noise either.
Below, L = lambda / (lambda + kappa), U = (kappa - mu) / (lambda + kappa), r = mu / (lambda + kappa); L + U + r = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs
from bench.theory.contract import contract, mode_sum, ratio
from bench.theory.eigenlearning import solve_kappa
from bench.theory.solver import rank


@dataclass(frozen=True)
class FinitePopulation:
    """Predictions for a batch; float64 and differentiable. Errors are against the noise-free target if not said else.

    All but `label_train_mse` count the noise on the training labels only through what it does to the predictor.
    """

    target_power: Tensor  # [..., modes]
    multiplicities: Tensor | None
    n: Tensor
    noise: Tensor
    population: Tensor  # [...], M, the sum of the multiplicities
    kappa: Tensor  # [...]
    learnabilities: Tensor  # [..., modes], L
    ridge_share: Tensor  # [..., modes], r
    unreached: Tensor  # [..., modes], U

    @cached_property
    def total_learnability(self) -> Tensor:
        """sum m L, [...]: exactly Tr K (K + delta)^-1 of the training points, on average."""
        return mode_sum(self.learnabilities, self.multiplicities)

    @cached_property
    def _spread(self) -> Tensor:
        """sum m U / sum m U (1 - U), at least 1; sum m U = M - n."""
        reached = self.learnabilities + self.ridge_share
        return ratio(self._sum(self.unreached), self._sum(self.unreached * reached), 1.0)

    @cached_property
    def population_mse(self) -> Tensor:
        """Mean squared error over all M points, trained ones included, [...]."""
        learned = self._sum(self.learnabilities**2)
        fluctuation = ratio(learned * self._spread, self._sum(self.unreached), 0.0)  # of sum m L^2 / sum m U (1 - U)
        bias = (self.unreached + self.ridge_share) ** 2 + fluctuation[..., None] * self.unreached**2
        reached = learned * self._spread / self.population  # (sum L^2 + fluctuation sum U^2) / M
        return contract(bias, self.target_power) + self.noise * reached

    @cached_property
    def train_mse(self) -> Tensor:
        """Mean squared error on the n training points against the noise-free target, [...]."""
        noise = 1 - 2 * self._sum(self.ridge_share) / self.n + self._residual_noise
        return self._residual_target + self.noise * noise

    @cached_property
    def label_train_mse(self) -> Tensor:
        """Mean squared error on the n training labels, noise included, [...]."""
        return self._residual_target + self.noise * self._residual_noise

    @cached_property
    def test_mse(self) -> Tensor:
        """Mean squared error over the M - n points outside the training set, [...]; NaN at n = M, where none is."""
        left = torch.where(self.n == self.population, torch.nan, self.population - self.n)
        return (self.population * self.population_mse - self.n * self.train_mse) / left

    @cached_property
    def learnability(self) -> Tensor:
        """sum L v^2 / sum v^2, [...]."""
        return contract(self.learnabilities, self.target_power) / self.target_power.sum(-1)

    @cached_property
    def _residual_target(self) -> Tensor:
        return self.population / self.n * self._spread * contract(self.ridge_share**2, self.target_power)

    @cached_property
    def _residual_noise(self) -> Tensor:
        return self._spread * self._sum(self.ridge_share**2) / self.n

    def _sum(self, weights: Tensor) -> Tensor:
        return mode_sum(weights, self.multiplicities)


def finite_population(
    eigenvalues: Any,
    target_power: Any,
    n: Any,
    ridge: Any = 0.0,
    noise: Any = 0.0,
    multiplicities: Any = None,
) -> FinitePopulation:
    """Kernel (ridge) regression on n points drawn without replacement from the M of the spectrum.

    Arguments and batching as in `eigenlearning`, with *all* modes of the domain: M = sum of the multiplicities, zero
    modes included, and target_power sums to the mean square of the target over the M points. `noise` is on the
    training labels only.

    Raises:
        ValueError: an argument is empty, negative, not finite, of a shape that does not fit, or n is 0 or above M.
    """
    lam, counts = inputs.spectrum(eigenvalues, multiplicities)
    v2 = inputs.power(target_power, lam)
    points = inputs.above_zero("n", n, lam.device)
    delta = inputs.at_least_zero("ridge", ridge, lam.device)
    sigma2 = inputs.at_least_zero("noise", noise, lam.device)
    batch = inputs.broadcast(eigenvalues=lam.shape[:-1], n=points.shape, ridge=delta.shape)
    inputs.broadcast(kappa=batch, target_power=v2.shape[:-1], noise=sigma2.shape)
    population = mode_sum(torch.ones_like(lam), counts)
    if bool((points > population).any()):
        raise ValueError(
            f"n must be at most the number of points of the domain, {float(population.amin()):.6g} "
            f"(the sum of the multiplicities), not {float(points.amax()):.6g}."
        )
    mu = delta / population
    lifted = lam + mu[..., None]
    reach = solve_kappa(lifted, counts, points.expand(batch), torch.zeros_like(points).expand(batch))  # kappa - mu
    total = lifted + reach[..., None]
    unreached = ratio(reach[..., None], total, 1.0)
    learned, share = ratio(lam, total, 0.0), ratio(mu[..., None], total, 0.0)
    if bool((total == 0).any()):  # zero modes, no ridge, n >= rank: the limit of a small ridge
        idle = population - rank(lam, counts)
        part = ratio(population - points, idle, 0.0)[..., None]
        unreached = torch.where(total == 0, part, unreached)
        share = torch.where(total == 0, 1 - part, share)
    return FinitePopulation(v2, counts, points, sigma2, population, reach + mu, learned, share, unreached)
