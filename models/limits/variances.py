"""What the compiled loops and the Triton kernels need of each image alone: its deviations at every layer of a stage."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.limits.chain import Stage
from models.limits.positions import window_sum
from models.limits.state import Kernels


def deviations(stage: Stage, q: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviations before each activation of a stage, and the kernels after its last layer.

    q, t: NNGP and NTK [n, S, S] of images with themselves at equal positions, where the angle is 0. The deviations are
    [layers, n, S, S], zero beyond the image where it has shrunk; the kernels [n, last, last], before pooling.
    """
    found = []
    for layer in stage.layers:
        q, t = (window_sum(window_sum(k, (-2,), layer.window), (-1,), layer.window) for k in (q, t))
        q, t = layer.w * q + layer.b, layer.w * t + layer.ws * q + layer.bs
        found.append(_grown(q.clamp_min(0).sqrt(), stage.size))
        if layer.dual is not None:
            after = layer.dual(Kernels(q, t, 1, tuple(q.shape[1:]), gaussian=True, diagonal=True, variances=(q, q)))
            # Where a pixel is exactly 0 the derivative is the slope on the left, as autograd has it.
            q, t = after.nngp, torch.where(q == 0, layer.left**2 * t, after.ntk)
    return torch.stack(found), q, t


def _grown(image: Tensor, size: int) -> Tensor:
    """[n, size, size]: zeros behind the image."""
    more = size - image.shape[-1]
    return functional.pad(image, (0, more, 0, more)) if more else image
