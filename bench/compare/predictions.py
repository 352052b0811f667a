"""The predictions that several comparisons read, each computed once a cell."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bench.compare.comparison import UnavailableError
from bench.compare.kept import kept
from bench.compare.metrics import loss_name, network_outputs, r2, skill_of, train_labels
from bench.gram import BASES
from bench.logistic import LogisticPredictor
from bench.losses import loss_of
from bench.networks import change
from bench.predict import KernelPredictor
from bench.trained import Trained
from models.limits import InfiniteWidth, NoInfiniteWidthLimit, infinite_width

Target = Literal["y", "self"]
Form = Literal["full", "trace", "sum"]
Metrics = dict[str, float | None]


def target_of(trained: Trained, member: int, target: Target) -> Tensor:
    """What a predictor is fitted to: the training labels, or the network's own training outputs; [n_train, c]."""
    return train_labels(trained, member) if target == "y" else trained.f_T[member, : trained.task(member).n_train]


def targets_of(trained: Trained, targets: tuple[Target, ...]) -> list[Target]:
    """Those that have a meaning: with a cross-entropy the flow ends at the network's own loss, and there is no self."""
    return [target for target in targets if target == "y" or loss_name(trained) == "mse"]


def regress(trained: Trained, member: int, kernel: Tensor, target: Target, base: str, ridge: float) -> Tensor:
    """What a kernel predicts at the test points, [n_test, c]: by regression, or as the network's loss asks.

    For a network trained by cross-entropy: by kernel logistic flow to the network's own train cross-entropy.

    Args:
        kernel: [n_train + n_test, n_train] or with two output axes.

    Raises:
        UnavailableError: the kernel does not reach the network's cross-entropy.
    """
    n, f_0 = trained.task(member).n_train, trained.f_0[member]
    loss, y = loss_name(trained), target_of(trained, member, target)
    if loss == "mse":
        return KernelPredictor(kernel[:n], ridge, base).fit(y, f_0[:n]).predict(kernel[n:], f_0[n:])
    end = float(loss_of(loss).value(trained.f_T[member, None, :n], y[None])[0])
    try:
        flow = LogisticPredictor(kernel[:n], end, base, loss).fit(y, f_0[:n])
    except ValueError as error:
        raise UnavailableError(str(error)) from error
    return flow.predict(kernel[n:], f_0[n:])


def empirical(trained: Trained, member: int, snapshot: int, form: Form = "full") -> Tensor:
    """The network's own kernel in one of its multi-output forms.

    Args:
        form: "full": every pair of outputs; "trace": the mean over outputs of K_cc, used for each output alike; "sum":
            the kernel of the summed outputs, 1'K1 / c (Mohamadi, Bae and Sutherland 2023), likewise.

    Returns:
        [n_train + n_test, n_train, c, c] for "full" of several outputs, else [n_train + n_test, n_train].
    """
    kernel = trained.ntk[member, snapshot]
    c = kernel.shape[2]
    if c == 1:
        return kernel[:, :, 0, 0]
    if form == "full":
        return kernel
    return (kernel.diagonal(dim1=2, dim2=3).sum(-1) if form == "trace" else kernel.sum((2, 3))) / c


@kept(16)
def outputs_at(trained: Trained, member: int) -> Tensor:
    """The network's own outputs f_t on the test points, at the snapshots: [S, n_test, c]."""
    params = {name: value[member] for name, value in trained.params.items()}
    task = trained.task(member)
    return change(trained.net, params, task.x_test) / trained.gamma[member] + trained.f_0[member, task.n_train :]


@kept(8)
def empirical_predictions(
    trained: Trained, snapshot: int, target: Target, base: str, ridge: float, form: Form = "full"
) -> tuple[Tensor, ...]:
    """Regression with K_0 (snapshot 0) or K_T (-1) of every member."""
    return tuple(
        regress(trained, i, empirical(trained, i, snapshot, form), target, base, ridge)
        for i in range(len(trained.members))
    )


def limit_of(trained: Trained) -> InfiniteWidth:
    """Raises: UnavailableError, the model has no infinite-width limit yet."""
    try:
        return infinite_width(trained.net)
    except NoInfiniteWidthLimit as error:
        raise UnavailableError(str(error)) from error


@kept(2)
def infinite_kernels(trained: Trained) -> dict[int, dict[str, Tensor]]:
    """Data draw -> {"ntk", "nngp"}, each [n_train + n_test, n_train]: one limit for all members of a draw.

    Raises:
        UnavailableError: the model has no infinite-width limit yet.
    """
    limit = limit_of(trained)
    kernels = {}
    for data in sorted({member.data for member in trained.members}):
        task = trained.tasks[data]
        x = task.x_train.to(trained.f_T)
        result = limit(torch.cat([x, task.x_test.to(x)]), x)
        kernels[data] = {"ntk": result.ntk, "nngp": result.nngp}
    return kernels


@kept(2)
def other_seeds(trained: Trained, base: str, ridge: float) -> dict[str, tuple[float, ...]]:
    """Member by member against the other inits on the same data, averaged over those.

    Returns:
        "network/r2", "network/skill" (the other network) and "after/r2", "after/skill" (the other's after-kernel); nan
        for a member that has no other init.
    """
    after = empirical_predictions(trained, -1, "y", base, ridge)
    columns: dict[str, list[float]] = {name: [] for name in ("network/r2", "network/skill", "after/r2", "after/skill")}
    for i, member in enumerate(trained.members):
        others = [j for j, other in enumerate(trained.members) if other.data == member.data and j != i]
        network = network_outputs(trained, i)
        for kind, predictions in (
            ("network", [network_outputs(trained, j) for j in others]),
            ("after", [after[j] for j in others]),
        ):
            together = torch.stack(predictions) if others else torch.full_like(network, math.nan)
            columns[f"{kind}/r2"].append(r2(together, network))
            columns[f"{kind}/skill"].append(skill_of(trained, i, together))
    return {name: tuple(values) for name, values in columns.items()}


def agnostic_ceilings(trained: Trained, base: str, ridge: float) -> Metrics:
    """Of a predictor that does not see the init: a second network counts the init noise twice, it once."""
    others = other_seeds(trained, base, ridge)
    return {metric: _half(_mean(others[f"network/{metric}"])) for metric in ("r2", "skill")}


def specific_ceilings(trained: Trained, base: str, ridge: float) -> Metrics:
    """Beside a predictor that sees the init: the after-kernel of another init."""
    others = other_seeds(trained, base, ridge)
    return {metric: known(_mean(others[f"after/{metric}"])) for metric in ("r2", "skill")}


def _mean(values: tuple[float, ...] | list[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def known(value: float) -> float | None:
    """None for nan: nothing is known."""
    return value if value == value else None


def _half(value: float) -> float | None:
    return None if value != value else 1 - (1 - value) / 2


def check_base(name: str, base: str) -> None:
    if base not in BASES:
        raise ValueError(
            f"compare.{name}.base must be init or zero, not {base!r}: with the trained network as base any kernel "
            "matches it."
        )
