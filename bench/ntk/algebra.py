"""Solves and spectra of kernels in float64: dense, or by products with an operator; each with its residual checked.

A kernel is a matrix [n, n], or [n, n, c, c] (then read as the sample-major matrix [n c, n c]). Right-hand sides y have
one row a row of the matrix: [n c] (one side) or [n c, b] (b of them, each solved for itself); or y is [n, c], the
targets of n samples with c outputs: one side, sample-major. The solution has the shape of y.

A tolerance of None is sqrt(eps) of the precision of the products: 1.5e-8 for float64 and for any matrix (which is taken
to float64 first), 3.5e-4 for an operator of a float32 network, whose products hold an error of some 1e-7 of |K|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ROUNDING = 1e-8
"""A smallest eigenvalue this far below zero, relative to the largest, is no rounding error of float64."""
CHECK_EVERY = 8
"""Steps of an iteration between two looks at its residual: each look waits for the device."""


class Operator(Protocol):
    """What has products: an ``NtkOperator``, a matrix."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Solution:
    """``x``, of the shape of y, with (K + ridge) x = y; ``residual``: |(K + ridge) x - y| / |y|, the largest of the
    right-hand sides; ``steps``: of conjugate gradients, 0 for a factorisation."""

    x: Tensor
    residual: float
    steps: int = 0


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues [k] in ascending order and vectors [n, k]; ``residual``: the largest |K v - l v| / l_max."""

    eigenvalues: Tensor
    vectors: Tensor
    residual: float


def as_matrix(kernel: Tensor) -> Tensor:
    """[n1, n2, c, c] -> [n1 c, n2 c], sample-major; a matrix stays as it is."""
    if kernel.ndim == 2:
        return kernel
    n1, n2, c, _ = kernel.shape
    return kernel.permute(0, 2, 1, 3).reshape(n1 * c, n2 * c)


def solve(kernel: Tensor, y: Tensor, ridge: float = 0.0) -> Solution:
    """(K + ridge) x = y for y [n c], [n c, b] or [n, c], by Cholesky factorisation in float64.

    A kernel that is singular to rounding is solved in the space of the eigenvalues above the ridge and rounding.

    Raises:
        ValueError: a y of another shape, a kernel that is not positive semidefinite beyond rounding, or a solution
            whose backward error, |r| / (|K| |x| + |y|), is above the 10 n units of rounding that a stable solver stays
            below.
    """
    shape, y = y.shape, _sides(kernel, y).double()
    K = as_matrix(kernel.double())
    regularised = K + ridge * torch.eye(len(K), dtype=K.dtype, device=K.device)
    factor, info = torch.linalg.cholesky_ex(regularised)
    rounding = len(K) * torch.finfo(K.dtype).eps
    # A pivot of the size of rounding is noise that happens to be positive.
    if int(info) == 0 and float(factor.diagonal().square().min()) > rounding * float(regularised.diagonal().max()):
        _check_semidefinite(K, ridge)
        x = torch.cholesky_solve(y, factor)
        return _checked(regularised, x, y, shape)
    eigenvalues, vectors = _eigh(K)
    # Of a singular kernel the smallest eigenvalues are rounding noise: drop it.
    noise = max(ridge, rounding * float(eigenvalues[-1]))
    inverse = torch.where(eigenvalues > noise, 1 / (eigenvalues + ridge), 0.0)
    x = vectors @ (inverse[:, None] * (vectors.T @ y))
    return Solution(x.reshape(shape), _residual(regularised, x, y))


def _sides(kernel: Operator | Tensor, y: Tensor) -> Tensor:
    """y as [n c, b]."""
    outputs = kernel.shape[2] if len(kernel.shape) == 4 else 1
    rows = kernel.shape[0] * outputs
    if y.ndim in (1, 2) and len(y) == rows:
        return y.reshape(rows, -1)
    samples = kernel.shape[0] if len(kernel.shape) == 4 else len(y) if y.ndim else 0
    if y.ndim == 2 and y.numel() == rows and len(y) == samples:
        return y.reshape(rows, 1)
    raise ValueError(
        f"y must be [{rows}] or [{rows}, b], a row for each row of the kernel, or [n, c] with n c = {rows}, the "
        f"targets of n samples with c outputs, not {list(y.shape)}."
    )


def _default(kernel: Operator | Tensor) -> float:
    dtype = torch.float64 if isinstance(kernel, Tensor) else kernel.dtype
    return math.sqrt(torch.finfo(dtype).eps)


def _remedy(kernel: Operator | Tensor) -> str:
    return "" if kernel.dtype == torch.float64 else ", or make the operator with dtype=torch.float64"


def _checked(matrix: Tensor, x: Tensor, y: Tensor, shape: torch.Size) -> Solution:
    error = (matrix @ x - y).norm(dim=0)
    backward = float(
        (error / (torch.linalg.matrix_norm(matrix) * x.norm(dim=0) + y.norm(dim=0)).clamp_min(1e-300)).max()
    )
    most = 10 * len(y) * torch.finfo(y.dtype).eps
    if not backward <= most:
        raise ValueError(
            f"The solution's backward error is {backward:.3g}, above {most:.3g}: does the kernel hold nan?"
        )
    return Solution(x.reshape(shape), _residual(matrix, x, y))


def _residual(matrix: Operator, x: Tensor, y: Tensor, ridge: float = 0.0) -> float:
    left = matrix @ x + ridge * x - y
    return float((left.norm(dim=0) / y.norm(dim=0).clamp_min(1e-300)).max())


def conjugate_gradients(
    kernel: Operator | Tensor,
    y: Tensor,
    ridge: float = 0.0,
    tolerance: float | None = None,
    max_steps: int = 1000,
) -> Solution:
    """(K + ridge) x = y for y [n c], [n c, b] or [n, c] by products alone (Hestenes and Stiefel 1952), all right-hand
    sides together.

    The residual that products in a precision eps allow is some eps (l_max + ridge) / ridge: with a small ridge float32
    is not enough even for the default tolerance, and the error says so.

    Raises:
        ValueError: a y of another shape, a direction of negative curvature beyond rounding (the kernel is not positive
            semidefinite), or a residual above ``tolerance`` after ``max_steps``.
    """
    tolerance = _default(kernel) if tolerance is None else tolerance
    shape, y = y.shape, _sides(kernel, y)
    K = as_matrix(kernel.double()) if isinstance(kernel, Tensor) else kernel
    y = y.to(K.device, torch.float64)
    x, r = torch.zeros_like(y), y.clone()
    p, rho = r.clone(), r.square().sum(0)
    worst = torch.zeros((), dtype=y.dtype, device=y.device)
    size = y.norm(dim=0).clamp_min(1e-300)
    steps, residual = 0, math.inf
    while steps < max_steps and residual > tolerance:
        for _ in range(CHECK_EVERY):
            q = (K @ p).to(y) + ridge * p
            curvature = (p * q).sum(0)
            worst = torch.minimum(worst, (curvature / p.square().sum(0).clamp_min(1e-300)).min())
            done = r.norm(dim=0) <= 0.1 * tolerance * size  # a column that is done must not go on with rounding noise
            step = torch.where(done | (curvature <= 0), 0.0, rho / curvature)
            x, r = x + step * p, r - step * q
            before, rho = rho, r.square().sum(0)
            p = r + torch.where(done, 0.0, rho / before.clamp_min(1e-300)) * p
            steps += 1
        residual = float((r.norm(dim=0) / size).max())
        if float(worst) < -ROUNDING * float((K @ p).to(y).norm(dim=0).max() / p.norm(dim=0).max().clamp_min(1e-300)):
            raise ValueError(
                f"The kernel is not positive semidefinite: curvature {float(worst):.3g} in some direction."
            )
    residual = _residual(_InFloat64(K), x, y, ridge)  # of the solution itself, not of the recursion
    if not residual <= 2 * tolerance:
        raise ValueError(
            f"Conjugate gradients reached a residual of {residual:.3g}, not {tolerance:.3g}, in {steps} steps: "
            f"raise max_steps, the tolerance or the ridge{_remedy(K)}."
        )
    return Solution(x.reshape(shape), residual, steps)


@dataclass(frozen=True)
class _InFloat64:
    operator: Operator

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operator.shape

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def __matmul__(self, other: Tensor, /) -> Tensor:
        return (self.operator @ other).double()


def spectrum(kernel: Tensor) -> Spectrum:
    """All eigenvalues and vectors, in float64.

    Raises:
        ValueError: a kernel that is not positive semidefinite beyond rounding.
    """
    K = as_matrix(kernel.double())
    eigenvalues, vectors = _eigh(K)
    error = (K @ vectors - vectors * eigenvalues).norm(dim=0).max()
    return Spectrum(eigenvalues, vectors, float(error / eigenvalues[-1].abs().clamp_min(1e-300)))


def _eigh(K: Tensor) -> tuple[Tensor, Tensor]:
    _check_finite(K)
    eigenvalues, vectors = torch.linalg.eigh(K)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest < -ROUNDING * abs(largest):
        raise ValueError(
            f"The kernel is not positive semidefinite: eigenvalues from {smallest:.3g} to {largest:.3g}; "
            "was it computed in float32, or is it not symmetric?"
        )
    return eigenvalues, vectors


def _check_finite(matrix: Tensor) -> None:
    if not bool(matrix.isfinite().all()):
        raise ValueError("The kernel holds entries that are nan or infinite: do the inputs, or the network?")


def _check_semidefinite(K: Tensor, ridge: float) -> None:
    """A ridge hides negative eigenvalues of its size from the factorisation."""
    largest = float(K.diagonal().max()) if len(K) else 0.0
    if ridge <= ROUNDING * largest:
        return
    shifted = K + ROUNDING * torch.linalg.matrix_norm(K) * torch.eye(len(K), dtype=K.dtype, device=K.device)
    if int(torch.linalg.cholesky_ex(shifted).info) != 0:
        _eigh(K)


def largest_eigenvalues(
    kernel: Operator | Tensor, k: int, tolerance: float | None = None, max_steps: int | None = None
) -> Spectrum:
    """The k largest eigenvalues and their vectors by block Lanczos iteration with full reorthogonalisation (Golub and
    Underwood 1977), from k fixed random vectors: of an eigenvalue that is there several times, as those of a symmetric
    domain are, the iterates of one vector hold one copy only.

    Raises:
        ValueError: k outside 1 ... n, or a residual |K v - l v| / l_max above ``tolerance`` after ``max_steps`` (None:
            n) products with a vector.
    """
    tolerance = _default(kernel) if tolerance is None else tolerance
    K = as_matrix(kernel.double()) if isinstance(kernel, Tensor) else kernel
    n = K.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}, the size of the kernel, not {k}.")
    most = n if max_steps is None else min(max_steps, n)
    if most < k:
        raise ValueError(f"max_steps must be at least k = {k}, not {max_steps}.")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, k, generator=generator, dtype=torch.float64).to(K.device)
    Q = block = torch.linalg.qr(start).Q
    columns: list[Tensor] = []  # of Q' K Q, down to the diagonal
    while True:
        w = (K @ block).to(start)
        column = Q.T @ w
        w = w - Q @ column
        again = Q.T @ w  # twice is enough (Kahan and Parlett)
        w = w - Q @ again
        columns.append(column + again)
        steps, width = Q.shape[1], block.shape[1]
        # In an invariant subspace w is noise, or exactly 0: what is outside of it goes on, coupled by rounding only.
        block, rest = torch.linalg.qr(w + 1e-30 * start.roll(steps, 0)[:, :width])
        if steps == most or len(columns) % max(1, CHECK_EVERY // k) == 0:
            projected = _assembled(columns)
            _check_finite(projected)
            values, vectors = torch.linalg.eigh(projected, UPLO="U")
            values, vectors = values[-k:], vectors[:, -k:]
            scale = values[-1].abs().clamp_min(1e-300)
            if steps == most or float((rest @ vectors[-width:]).norm(dim=0).max() / scale) <= tolerance:
                found = Q @ vectors
                break
        block = block[:, : most - steps]
        for _ in range(2):  # directions of noise are not yet outside of Q
            block = torch.linalg.qr(block - Q @ (Q.T @ block)).Q
        Q = torch.cat([Q, block], 1)
    error = (K @ found).to(start) - found * values
    residual = float(error.norm(dim=0).max() / scale)
    if not residual <= 2 * tolerance:
        raise ValueError(
            f"Lanczos reached a residual of {residual:.3g}, not {tolerance:.3g}, in {steps} steps: raise max_steps or "
            f"the tolerance{_remedy(K)}."
        )
    return Spectrum(values, found, residual)


def _assembled(columns: list[Tensor]) -> Tensor:
    """The upper triangle of a symmetric matrix [m, m], of blocks of columns that end at the diagonal."""
    size = columns[-1].shape[0]
    return torch.cat([torch.nn.functional.pad(column, (0, 0, 0, size - len(column))) for column in columns], 1)
