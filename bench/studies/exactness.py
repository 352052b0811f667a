"""Networks with weight decay at a stationary point, which are kernel regression with their own final NTK, exactly."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.homogeneity import degree, exact_ridge
from bench.predict import KernelPredictor
from bench.record import Record
from bench.studies.study import result
from bench.train import Trainer
from bench.trained import Member, Richness, Trained, seed_of
from models.activations import RectifiedPower
from models.layers import Linear
from tasks.hypercube import staircase


@dataclass(frozen=True)
class Exactness:
    """Settings: one network a seed, relu^power between two layers, each on a data draw of its own.

    Attributes:
        power: 2: once differentiable, and training ends at a stationary point; 1: ReLU, whose kinks settle on the data,
            where there is none: it ends after ``max_steps``.
    """

    richness: Richness = 1.0
    centred: bool = True
    width: int = 64
    n_train: int = 128
    d: int = 16
    weight_decay: float = 3e-3
    power: int = 2
    max_steps: int = 100_000
    seeds: tuple[int, ...] = tuple(range(4))


def exactness(settings: Exactness) -> Record:
    """Relative squared errors at the test points, [seeds]: the exact predictor, and with one ingredient wrong each.

    Also ``gradient`` [seeds]: of the objective, relative to ``lambda |theta|``, at the end; and ``motion`` of K.

    Raises:
        ValueError: a network of relu^2 that did not reach its stationary point.
    """
    tasks = [
        staircase(d=settings.d, n_train=settings.n_train, n_test=256, seed=seed_of("data", seed))
        for seed in settings.seeds
    ]
    net = nn.Sequential(
        Linear(settings.d, settings.width, w_std=2**0.5, b_std=0.3 * 2**0.5),
        RectifiedPower(settings.power),
        Linear(settings.width, 1),
    )
    trainer = Trainer(
        richness=settings.richness, centred=settings.centred, weight_decay=settings.weight_decay, optimiser="lbfgs",
        dtype="float64", gradient=1e-6, tolerance=0.0, max_steps=settings.max_steps,
    )  # fmt: skip
    trained = trainer.fit(net, tasks, [Member(i, seed) for i, seed in enumerate(settings.seeds)])
    if settings.power > 1 and set(trained.status) != {"done"}:
        raise ValueError(f"A network did not reach its stationary point: {trained.status}.")
    rows = [_errors(trained, i, settings) for i in range(len(settings.seeds))]
    return result(arrays={name: np.array([row[name] for row in rows]) for name in rows[0]})


def _errors(trained: Trained, member: int, settings: Exactness) -> dict[str, float]:
    task, gamma = trained.task(member), trained.gamma[member]
    params = {name: value[member] for name, value in trained.params_T.items()}
    homogeneous = degree(trained.net, task.x_train, params)
    ridge = exact_ridge(homogeneous, gamma, task.n_train, settings.weight_decay)
    zero = torch.zeros_like(trained.f_T[member])
    base = -trained.z_0(member) / gamma if settings.centred else zero
    K_0, K_T = (trained.ntk[member, snapshot][:, :, 0, 0] for snapshot in (0, -1))
    return {
        "exact": _error(trained, member, K_T, ridge, base),
        "no gamma^2": _error(trained, member, K_T, ridge / gamma**2, base),
        "no ridge": _error(trained, member, K_T, 0.0, base),
        "wrong degree": _error(trained, member, K_T, ridge * (homogeneous - 1) / homogeneous, base),
        "initial kernel": _error(trained, member, K_0, ridge, base),
        "base zero": _error(trained, member, K_T, ridge, zero),
        "motion": float((K_T - K_0).norm() / K_0.norm()),
        "gradient": _gradient(trained, member, settings.weight_decay),
    }


def _error(trained: Trained, member: int, kernel: Tensor, ridge: float, base: Tensor) -> float:
    f, n = trained.f_T[member], trained.task(member).n_train
    predictor = KernelPredictor(kernel[:n], ridge, base="init").fit(trained.task(member).y_train, base[:n])
    p = predictor.predict(kernel[n:], base[n:])
    return float((p - f[n:]).square().sum() / f[n:].square().sum())


def _gradient(trained: Trained, member: int, decay: float) -> float:
    """``|grad L + lambda theta| / (lambda |theta|)``, with ``grad L = sum_i r_i grad z(x_i) / (gamma N)``."""
    task, gamma = trained.task(member), trained.gamma[member]
    params = {name: value[member].double().requires_grad_() for name, value in trained.params_T.items()}
    z = functional_call(copy.deepcopy(trained.net).double(), params, (task.x_train.double(),))
    residual = trained.f_T[member, : task.n_train].double() - task.y_train
    slopes = torch.autograd.grad((z * residual).sum() / (gamma * task.n_train), list(params.values()))
    theta = [value.detach() for value in params.values()]
    total = torch.stack([(slope + decay * value).square().sum() for slope, value in zip(slopes, theta, strict=True)])
    return float((total.sum() / torch.stack([value.square().sum() for value in theta]).sum()).sqrt() / decay)
