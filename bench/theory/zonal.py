"""What hypercube and sphere share: kernels of x . x' alone, whose eigenvalues come in levels of known multiplicity."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bench.theory.spectrum import Kernel, Spectrum, Target, column_targets, make_target

_ROUNDINGS = 16  # of a float64 kernel value: a deep network's limit is some ten operations


def first_row(kernel: Kernel, points: Tensor) -> Tensor:
    """K(x_0, x_j), [n], the entry K(x_0, x_0) by the symmetric call: an arc cosine near 1 would cost it 1e-8.

    Raises:
        ValueError: the kernel gives another shape, or NaN.
    """
    diagonal, row = kernel(points[:1]), kernel(points[:1], points[1:])
    if diagonal.shape != (1, 1) or row.shape != (1, len(points) - 1):
        raise ValueError(
            "The kernel must map [n1, d] and [n2, d] to [n1, n2]: of 1 and "
            f"{len(points) - 1} points it gave {list(row.shape)}."
        )
    values = torch.cat([diagonal[0], row[0]]).to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("The kernel holds NaN or infinity.")
    return values


def level_spectrum(traces: Tensor, multiplicities: Tensor, trace: Tensor) -> Spectrum:
    """From the trace m_k lambda_k of each level: what is below the rounding of the kernel's values is set to 0.

    A level is a sum of kernel values against sqrt(m_k) times an orthonormal function, so their rounding, eps K(x, x),
    enters its trace sqrt(m_k) times over. Such levels are then part of the tail.

    Raises:
        ValueError: a level is negative beyond that: not a positive semidefinite kernel.
    """
    floor = _ROUNDINGS * torch.finfo(torch.float64).eps * trace.abs() * multiplicities.sqrt()
    traces = torch.where(floor < trace.abs(), traces, 0.0)  # beyond, nothing but rounding is left
    if bool((traces < -floor).any()):
        level = int((traces + floor).argmin())
        raise ValueError(
            f"The kernel is not positive semidefinite: its level {level} has the trace {float(traces[level]):.3g}."
        )
    return Spectrum(torch.where(traces > floor, traces, 0.0) / multiplicities, multiplicities, trace)


def sampled_power(
    x: Tensor, y: Tensor, multiplicities: Tensor, polynomials: Callable[[Tensor], Iterable[Tensor]]
) -> Target:
    """Power of any target in each level from a sample of it, without bias: m_k times the mean over pairs of
    different points of y_i y_j P_k(x_i . x_j), where P_k is the level's zonal polynomial, 1 at x = x'.

    By the addition theorem sum_i phi_i(x) phi_i(x') = m_k P_k over a level. The standard error of a level is about
    mean(y^2) sqrt(2 m_k) / N for N points, plus that of the mean square. Negative estimates are set to 0.

    Args:
        x: [N, d].
        y: [N] or [N, c].
        multiplicities: [levels].
        polynomials: [N, N] inner products -> [N, N] for each level.
    """
    values, single = column_targets(y)
    n = len(values)
    if len(x) != n or n < 2:
        raise ValueError(f"x and y must have the same number of rows, at least 2, not {len(x)} and {n}.")
    mean_square = values.square().mean(0)
    pairs = []
    for polynomial in polynomials(x.to(torch.float64) @ x.to(torch.float64).T):
        pairs.append(((polynomial @ values * values).sum(0) - n * mean_square) / (n * (n - 1)))
    power = (torch.stack(pairs, 1) * multiplicities).clamp_min(0)
    return make_target(power, mean_square, single)
