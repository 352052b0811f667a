"""Networks that train together: their parameters, data and scales, stacked along a leading member axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.losses import Loss
from bench.ntk import empirical_ntk

LAMBDA_POINTS = 128
"""Of the training set, for lambda_max: enough for a step size (not for a predictor)."""
LAMBDA_ROWS = 512
"""Points times outputs at most, so that ten classes do not make a step size expensive."""


@dataclass(frozen=True)
class Batch:
    """Leading axis m: the members; c outputs, N training points.

    ``params`` are the trained parameters, ``fixed`` everything else that the network needs; x [m, N, *shape],
    y, z_0 [m, N, c], gamma [m]; the outputs are ``f = (z - z_0) / gamma`` (z_0 is zero where they are not centred).
    ``data`` names each member's training set, so that members share kernel work.
    """

    net: nn.Module
    params: dict[str, Tensor]
    fixed: dict[str, Tensor]
    x: Tensor
    y: Tensor
    z_0: Tensor
    gamma: Tensor
    data: tuple[int, ...]

    def keep(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(list(rows), device=self.x.device)

        def some(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.detach().index_select(0, index) for name, tensor in tensors.items()}

        x, y, z_0, gamma = (tensor.index_select(0, index) for tensor in (self.x, self.y, self.z_0, self.gamma))
        data = tuple(self.data[i] for i in rows)
        return replace(self, params=some(self.params), fixed=some(self.fixed), x=x, y=y, z_0=z_0, gamma=gamma,
                       data=data)  # fmt: skip

    def decisive(self) -> dict[str, Tensor]:
        """What decides a training besides its rule."""
        fixed = {f"fixed {name}": value for name, value in self.fixed.items()}
        return {**self.params, **fixed, "x": self.x, "y": self.y, "gamma": self.gamma}

    def outputs(self, z: Tensor) -> Tensor:
        """f, [m, N, c], of z."""
        return (z - self.z_0) / self.gamma[:, None, None]


def forward(batch: Batch, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """z, [m, n, c], for inputs x [m, n, *shape]."""
    if len(batch.data) == 1:  # vmap costs time, and convolutions most of theirs
        return functional_call(batch.net, {name: p[0] for name, p in {**batch.fixed, **params}.items()}, (x[0],))[None]

    def one(member: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(batch.net, member, (inputs,))

    return torch.vmap(one)({**batch.fixed, **params}, x)


def lambda_points(batch: Batch, whole: bool) -> int:
    """How many of the training points lambda_max is of: the first ones, or all of them (``whole``)."""
    n, c = batch.y.shape[1:]
    return n if whole else min(n, LAMBDA_POINTS, max(1, LAMBDA_ROWS // c))


def lambda_max(batch: Batch, loss: Loss, whole: bool = False) -> Tensor:
    """The largest eigenvalue of ``A' K_t A / N``, [m]; for mean squared error, of K_t / N.

    A A' is the loss's second derivative in the outputs, so that 2 over this number is the longest stable step. The
    members share a training set.
    """
    points, c = lambda_points(batch, whole), batch.y.shape[2]
    params = {name: p.detach() for name, p in {**batch.fixed, **batch.params}.items()}
    kernel = empirical_ntk(batch.net, batch.x[0, :points], params=params)
    assert isinstance(kernel, Tensor)
    if loss.curved:
        seen = replace(batch, z_0=batch.z_0[:, :points])
        root = loss.root(seen.outputs(forward(seen, batch.params, batch.x[:, :points]).detach()))
        kernel = torch.einsum("miab,mijac,mjcd->mijbd", root, kernel, root)
    return largest(kernel.permute(0, 1, 3, 2, 4).reshape(len(kernel), points * c, points * c)) / points


def largest(kernels: Tensor) -> Tensor:
    """The largest eigenvalue of each of the matrices [m, n, n]; of one that is not finite, some number."""
    return torch.linalg.eigvalsh(torch.nan_to_num(kernels))[:, -1]
