"""The hard-margin support vector machine in a kernel, without intercept: where networks trained by cross-entropy go.

A homogeneous network that is trained on and on by logistic loss goes to a stationary point of margin maximisation (Lyu
and Li 2020, "Gradient descent maximizes the margin of homogeneous neural networks"), at which it is, up to scale, the
maximum-margin classifier of its own after-kernel: ``theta = sum_i a_i y_i grad f(x_i)`` (Long 2021, "Properties of the
after kernel"). No intercept: a network's bias is part of its kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.gram import Gram, classes

GAP = 1e-10
"""Relative duality gap at which the dual is solved: decision values are then right to its square root."""
MOST_ITERATIONS = 100
SHORTENED = 0.995
"""Of the way to the boundary that one interior step goes at most."""


class MarginPredictor:
    """``min |theta|^2`` subject to ``y_i f(x_i) >= 1``, or ``f_{y_i}(x_i) - f_c(x_i) >= 1`` for every other class c.

    The base is zero: the direction of the limit does not know where training began.

    Args:
        k_train: [n, n], one kernel for all outputs, or [n, n, c, c]; as for ``KernelPredictor``.

    Raises:
        ValueError: a matrix that is no kernel.
    """

    def __init__(self, k_train: Any) -> None:
        self.gram = Gram(k_train)
        self._weights: Tensor | None = None
        self._margin = 0.0

    def fit(self, y: Any) -> MarginPredictor:
        """Separate the classes that y [n, c] names: its sign where c = 1, its largest column otherwise.

        Raises:
            ValueError: the kernel does not separate the classes beyond rounding.
        """
        targets = self.gram.targets(y)
        margins = _Margins(self.gram, classes(targets), targets.shape[1])
        share, norm = nearest_point(margins.kernel())
        self._margin = norm**0.5
        self._weights = margins.weights(share / norm)
        return self

    @property
    def weights(self) -> Tensor:
        """The function's weights on the kernel's columns, [n, c] ([n c, 1] for a full multi-output kernel)."""
        if self._weights is None:
            raise ValueError("Call fit before predict.")
        return self._weights

    @property
    def margin(self) -> float:
        """The distance of the nearest training point to the boundary in feature space, ``1 / |theta|``."""
        return self._margin

    def predict(self, k_test_train: Any) -> Tensor:
        """Decision values [n_test, c], at least 1 (or 1 apart) on the training points; kernel as for
        ``KernelPredictor``."""
        return self.gram.predict(k_test_train, self.weights)


class _Margins:
    """The constraints as features: ``y_i phi(x_i)``, or ``phi_{y_i}(x_i) - phi_c(x_i)`` for every other class c."""

    def __init__(self, gram: Gram, labels: Tensor, outputs: int) -> None:
        self.gram, self.outputs = gram, outputs
        n, device = gram.n, gram.matrix.device
        if outputs == 1:
            self.signs = torch.diag_embed(labels.to(gram.matrix)[:, None] * 2 - 1)  # [n, 1, 1]
            return
        # Row (i, r), r the rank of c among the other classes: +1 on the label, -1 on c.
        every = torch.arange(outputs, device=device)
        others = every.expand(n, outputs)[every != labels[:, None]].reshape(n, outputs - 1)
        one = torch.nn.functional.one_hot(labels, outputs)[:, None, :]
        self.signs = (one - torch.nn.functional.one_hot(others, outputs)).to(gram.matrix)  # [n, c - 1, c]

    def kernel(self) -> Tensor:
        """The Gram matrix of the constraints, [n (c - 1), n (c - 1)]; [n, n] for one output."""
        n, rows, c = self.signs.shape
        if self.gram.outputs is None:
            inner = torch.einsum("irc,jsc->irjs", self.signs, self.signs)
            return (inner * self.gram.matrix[:, None, :, None]).reshape(n * rows, n * rows)
        full = self.gram.matrix.reshape(n, c, n, c)
        return torch.einsum("irc,icjd,jsd->irjs", self.signs, full, self.signs).reshape(n * rows, n * rows)

    def weights(self, multipliers: Tensor) -> Tensor:
        n, rows, _ = self.signs.shape
        return self.gram.flat(torch.einsum("ir,irc->ic", multipliers.reshape(n, rows), self.signs))


def nearest_point(kernel: Tensor) -> tuple[Tensor, float]:
    """The point of the convex hull nearest to the origin: ``min a'Ka`` with a >= 0 and sum 1, the dual of the margin.

    A primal-dual interior-point method with Mehrotra's corrector (1992), which stays feasible: one Cholesky
    factorisation of [m, m] an iteration, some twenty of them, whether or not the kernel is singular.

    Args:
        kernel: [m, m], float64.

    Returns:
        a [m], and the squared distance.

    Raises:
        ValueError: the distance is zero to rounding: the classes are not separable.
    """
    m = len(kernel)
    scale = float(kernel.diagonal().mean())
    Q = kernel / scale if scale > 0 else kernel
    resolved = 10 * m * torch.finfo(Q.dtype).eps * float(Q.diagonal().max())
    a = Q.new_full((m,), 1 / m)
    product = Q @ a
    level = product.min() - 1  # the multiplier of the sum; at the solution, the squared distance
    z = product - level
    for _ in range(MOST_ITERATIONS):
        squared, gap = float(a @ product), float(a @ z)
        if squared <= resolved:
            raise ValueError(
                "The kernel does not separate the classes: a hard margin does not exist (its square is below "
                f"{resolved:.1g} of the mean of the kernel's diagonal, which is rounding)."
            )
        if gap <= GAP * squared:
            break
        a, level, z, product = _step(Q, a, level, z, product)
    else:
        raise ValueError(f"The margin's dual stays at a relative gap of {gap / squared:.2g}, above {GAP:.0g}.")
    return a, squared * scale


def _step(Q: Tensor, a: Tensor, level: Tensor, z: Tensor, product: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factor = torch.linalg.cholesky(Q + torch.diag(z / a))
    ones = torch.cholesky_solve(torch.ones_like(a)[:, None], factor)[:, 0]

    def direction(complement: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """da, dlevel, dz with Q da - dlevel - dz = 0, sum da = 0, z da + a dz = complement."""
        free = torch.cholesky_solve((complement / a)[:, None], factor)[:, 0]
        dlevel = -free.sum() / ones.sum()
        da = free + dlevel * ones
        return da, dlevel, (complement - z * da) / a

    da, _, dz = direction(-a * z)
    gap = a @ z
    affine = (a + _longest(a, da) * da) @ (z + _longest(z, dz) * dz)
    centre = (affine / gap) ** 3 * gap / len(a)
    da, dlevel, dz = direction(centre - a * z - da * dz)
    length = SHORTENED * torch.minimum(_longest(a, da), _longest(z, dz))  # one for both: z is linear in a
    a = a + length * da
    a = a / a.sum()
    product = Q @ a
    level = level + length * dlevel
    # z from its definition, so that rounding does not add up; positive, as it was.
    return a, level, torch.maximum(product - level, 1e-3 * (z + length * dz)), product


def _longest(v: Tensor, dv: Tensor) -> Tensor:
    """How far v + t dv stays positive; at most 1."""
    return torch.where(dv < 0, -v / dv, 1.0).clamp_max(1.0).amin()
