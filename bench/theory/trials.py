"""Kernel regression on random training sets from a finite domain: what the theory predicts, measured.

All trials are one batched solve; predictions on the whole domain are one matrix product (dual weights scattered into
zero vectors), so 300 trials of 128 from 256 points take some tenths of a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BYTES = 2**29  # of one batch of trials


@dataclass(frozen=True)
class Trials:
    """Errors of each trial, [trials, c], against the noise-free targets unless said else."""

    population_mse: Tensor  # over all M points
    test_mse: Tensor  # over the points not drawn; NaN where every point was
    train_mse: Tensor
    label_train_mse: Tensor  # against the noisy training labels
    learnability: Tensor  # <f, f_hat> / <f, f>
    total_learnability: Tensor  # [trials], sum over any complete basis: Tr K (K + delta)^-1
    coefficients: Tensor | None  # [trials, modes, c], of the predictors in the basis given
    drawn: Tensor  # [trials, n], the rows of the domain that each training set holds

    def mean(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean over trials, at least 2, and its standard error, [c], of a field.

        Raises:
            ValueError: a single trial.
        """
        if len(self.test_mse) < 2:
            raise ValueError("A standard error needs at least 2 trials.")
        values: Tensor = getattr(self, name)
        return values.mean(0), values.std(0) / len(values) ** 0.5


def kernel_trials(
    kernel: Tensor,
    targets: Tensor,
    n: int,
    *,
    trials: int,
    generator: torch.Generator,
    ridge: float = 0.0,
    noise: float = 0.0,
    replacement: bool = False,
    basis: Tensor | None = None,
) -> Trials:
    """Ridge regression (K_nn + ridge)^-1 on `trials` random training sets of n of the M points.

    Args:
        kernel: [M, M], float64.
        targets: [M, c], noise-free.
        n: training points of each set.
        trials: number of sets.
        generator: of the draws of points and noise, on the CPU.
        ridge: on the unnormalised Gram matrix; 0 needs non-singular ones.
        noise: variance of the noise on training labels, drawn anew in each trial (and for each target).
        replacement: draw points with replacement (then with a ridge: a repeated point is a singular Gram matrix).
        basis: [M, modes], orthonormal under the mean over the domain, for `coefficients`.

    Raises:
        ValueError: shapes, sizes or signs that do not fit.
        torch.linalg.LinAlgError: a singular Gram matrix.
    """
    population = len(kernel)
    if kernel.shape != (population, population) or targets.ndim != 2 or len(targets) != population:
        raise ValueError(
            f"kernel and targets must be [M, M] and [M, c], not {list(kernel.shape)}, {list(targets.shape)}."
        )
    if trials < 1 or n < 1 or (n > population and not replacement):
        raise ValueError(f"trials and n must be at least 1, and n at most M = {population}, not {trials} and {n}.")
    if ridge < 0 or noise < 0:
        raise ValueError(f"ridge and noise must be at least 0, not {ridge} and {noise}.")
    per_trial = 8 * (3 * n * n + 4 * population * targets.shape[1])
    size = max(1, _BYTES // per_trial)
    parts = []
    for first in range(0, trials, size):
        count = min(size, trials - first)
        if replacement:
            drawn = torch.randint(population, (count, n), generator=generator)
        else:
            drawn = torch.rand(count, population, generator=generator, dtype=torch.float64).argsort(1)[:, :n]
        error = torch.randn(count, n, targets.shape[1], generator=generator, dtype=torch.float64)
        parts.append(_batch(kernel, targets, drawn.to(kernel.device), error.to(kernel) * noise**0.5, ridge, basis))
    joined = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return Trials(*joined)  # type: ignore[arg-type]


def _batch(
    kernel: Tensor, targets: Tensor, drawn: Tensor, error: Tensor, ridge: float, basis: Tensor | None
) -> tuple[Tensor | None, ...]:
    population, c = targets.shape
    count, n = drawn.shape
    gram = kernel[drawn[:, :, None], drawn[:, None, :]]
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    factor = torch.linalg.cholesky(gram)
    clean = targets[drawn]
    weights = torch.cholesky_solve(clean + error, factor)
    spread = torch.zeros(count, population, c, dtype=kernel.dtype, device=kernel.device)
    spread.scatter_add_(1, drawn[:, :, None].expand(-1, -1, c), weights)
    predicted = (kernel @ spread.transpose(0, 1).reshape(population, -1)).reshape(population, count, c)
    squared = (predicted - targets[:, None]) ** 2  # [M, trials, c]
    inside = torch.zeros(count, population, dtype=torch.bool, device=kernel.device).scatter_(1, drawn, True)
    outside = (~inside).T[:, :, None]
    test = (squared * outside).sum(0) / outside.sum(0)
    on_train = ridge * weights  # label - prediction
    learnability = (predicted * targets[:, None]).mean(0) / (targets**2).mean(0)
    total = torch.full((count,), float(n), dtype=kernel.dtype, device=kernel.device)
    if ridge:
        total = total - ridge * torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).sum(1)
    coefficients = None if basis is None else torch.einsum("xm,xtc->tmc", basis, predicted) / population
    return (
        squared.mean(0),
        test,
        (on_train - error).square().mean(1),
        on_train.square().mean(1),
        learnability,
        total,
        coefficients,
        drawn,
    )
