"""Gradient descent at a fixed rate with a loss curve: for networks that are compared step by step."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Descent(NamedTuple):
    """A centred network ``f = z - z_0`` after ``descend``."""

    train: Tensor  # [steps + 1], mean over points of the squared error summed over outputs
    test: Tensor  # [steps + 1]
    f_test: Tensor  # [n_test, c], at the end


def descend(
    net: nn.Module, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, rate: float, steps: int, until: float = 0.0
) -> Descent:
    """Full-batch descent on ``1/(2n) sum r^2``, so that ``df = -rate / n K r`` a step; stops at train error ``until``.

    The curves then end early. The network is not changed.
    """
    net = copy.deepcopy(net)
    parameters = list(net.parameters())
    both, n = torch.cat([x, x_test]), len(x)
    with torch.no_grad():
        start = net(both)
    train, test = [], []
    for step in range(steps + 1):
        f = net(both) - start
        residual = f[:n] - y
        train.append(float(residual.detach().square().sum() / n))
        test.append(float((f[n:] - y_test).detach().square().sum() / len(y_test)))
        if step == steps or train[-1] <= until:
            break
        gradients = torch.autograd.grad(residual.square().sum() / (2 * n), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(rate * gradient)
    losses = torch.tensor([train, test], dtype=torch.float64)
    return Descent(losses[0], losses[1], f.detach()[n:])
