"""The exactness anchor: networks at a stationary point of loss + weight decay, by L-BFGS in float64.

There a homogeneous network is kernel regression with its own final NTK, to rounding: by Euler's theorem
``L z = theta . grad z`` for a network of degree L, and a stationary point has ``lambda theta = -grad(loss)``, so that
``f_T(x) = b(x) + K_T(x, X) [K_T(X, X) + gamma^2 N L lambda]^-1 (y - b(X))`` with ``b = -z_0 / gamma`` if the outputs
are centred, else 0 (Lauditi, Bordelon and Pehlevan 2025 state the predictor for infinite width).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.batch import Batch, forward
from bench.descent import Rule
from bench.ledger import Course

MEMORY = 30
"""Pairs of differences that L-BFGS keeps."""
ROUND = 200
"""Iterations between two looks at the gradient; then the memory starts anew, which helps a line search that stalls."""


def minimise(batch: Batch, rule: Rule, progress: Callable[[float], None] | None = None) -> list[Course]:
    """Every member by itself to a stationary point of ``L + lambda/2 |theta|^2``, on a device of float64.

    It is done where the norm of the gradient is ``rule.gradient`` times ``lambda |theta|``. There is no time: the steps
    of a course are nan, one a round of iterations.
    """
    courses = []
    for i in range(len(batch.data)):
        courses.append(_minimise(batch.keep([i]), rule))
        if progress is not None:
            progress((i + 1) / len(batch.data))
    return courses


def _minimise(batch: Batch, rule: Rule) -> Course:
    leaves = [parameter.requires_grad_() for parameter in batch.params.values()]
    scale = float(rule.loss.value(torch.zeros_like(batch.y), batch.y))
    relative = 0.0

    def objective() -> Tensor:
        nonlocal relative
        for leaf in leaves:
            leaf.grad = None
        f = batch.outputs(forward(batch, dict(zip(batch.params, leaves, strict=True)), batch.x))
        loss = rule.loss.value(f, batch.y)[0]
        relative = float(loss.detach()) / scale
        penalty = rule.weight_decay / 2 * torch.stack([leaf.square().sum() for leaf in leaves]).sum()
        (loss + penalty).backward()
        return loss + penalty

    def point() -> dict[str, Tensor]:
        return {name: parameter[0].detach().clone() for name, parameter in batch.params.items()}

    objective()
    losses, snapshots, status = [relative], {0: point()}, "unconverged"
    for _ in range(max(1, rule.max_steps // ROUND)):
        torch.optim.LBFGS(
            leaves, max_iter=min(ROUND, rule.max_steps), history_size=MEMORY, line_search_fn="strong_wolfe",
            tolerance_grad=0.0, tolerance_change=0.0,
        ).step(objective)  # fmt: skip
        objective()
        losses.append(relative)
        gradient = _norm([leaf.grad for leaf in leaves if leaf.grad is not None])
        if gradient <= rule.gradient * rule.weight_decay * _norm(leaves) or not math.isfinite(gradient):
            status = "done" if math.isfinite(gradient) else "diverged"
            break
    snapshots[len(losses) - 1] = point()
    unknown = np.full(len(losses) - 1, np.nan)
    return Course(np.array(losses), unknown, unknown, unknown, snapshots, status)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.detach().square().sum() for tensor in tensors]).sum().sqrt())
