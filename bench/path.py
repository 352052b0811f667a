"""The path kernel: a network's way as a sum over its own kernels along it (Domingos 2020, for gradient descent)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.losses import loss_of
from bench.networks import outputs
from bench.ntk.algebra import as_matrix
from bench.trained import Trained


def path_prediction(trained: Trained, member: int) -> Tensor:
    """``f_0 - sum_k eta_k K_k(x, X) r_k / N``, [n_train + n_test, c], from the kernel and residual before every step.

    It is f_T up to the curvature of the steps: its error falls in proportion to the step size.

    Raises:
        ValueError: the member has no snapshot before every step (``schedule="dense"``), or its steps are no plain
            gradient descent.
    """
    settings, history, task = trained.settings, trained.history[member], trained.task(member)
    steps = len(history.steps)
    if history.snapshot_steps[: steps + 1].tolist() != list(range(steps + 1)):
        raise ValueError("The path kernel needs trainer.schedule=dense: a snapshot before every step.")
    if settings["weight_decay"] or settings["optimiser"] != "gd" or settings["momentum"] or settings["accelerated"]:
        raise ValueError("The path kernel is of plain gradient descent: no weight decay, no momentum.")
    loss, n = loss_of(str(settings["loss"])), task.n_train
    params = {name: value[member] for name, value in trained.params.items()}
    z = outputs(trained.net, params, task.x_train)
    f = trained.f_0[member, :n] + (z - z[0]) / trained.gamma[member]
    r = loss.gradient(f, task.y_train.to(f).expand_as(f))
    total = trained.f_0[member].clone()
    for step, eta in enumerate(history.steps.tolist()):
        total -= eta / n * (as_matrix(trained.ntk[member, step]) @ r[step].reshape(-1)).view_as(total)
    return total


def path_error(trained: Trained, member: int) -> float:
    """``|path prediction - f_T| / |f_T|`` at the test points."""
    n = trained.task(member).n_train
    difference = (path_prediction(trained, member) - trained.f_T[member])[n:]
    return float(torch.linalg.norm(difference) / torch.linalg.norm(trained.f_T[member, n:]))
