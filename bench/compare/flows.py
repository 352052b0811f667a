"""The whole training curve against kernels that stay as they are: does the after-kernel tell the way, not only the end?

"As if it had always had its final kernel": gradient flow in K_T from f_0, compared with the network at every moment.
A feature-learning network starts with a small kernel and ends with a large one, so the flow in either has a clock of
its own. Time is therefore rescaled, once, by the factor that brings the two train losses nearest; what is then left is
shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.comparison import UnavailableError
from bench.compare.kept import kept
from bench.compare.metrics import loss_name, train_labels
from bench.compare.motion import curve_steps, padded
from bench.compare.predictions import empirical, infinite_kernels, outputs_at
from bench.ntk.algebra import spectrum
from bench.predict import KernelPredictor, course
from bench.record import Score, summarise
from bench.trained import Trained

KERNELS: dict[str, Callable[[Trained, int], Tensor]] = {
    "after": lambda trained, i: empirical(trained, i, -1),
    "initial": lambda trained, i: empirical(trained, i, 0),
    "infinite_ntk": lambda trained, i: infinite_kernels(trained)[trained.members[i].data]["ntk"],
}
DECADES, COARSE, FINE = 3.0, 61, 41
"""The factor of time is sought so far to both sides of 1, a tenth of a decade a step, then a per cent a step."""


@dataclass(frozen=True)
class Flows:
    """Train loss and test outputs of K_T, K_0 and the infinite-width NTK all along training, time rescaled once.

    For networks of one output trained by full-batch steps on squared error. Per kernel: ``<kernel>@flow/time_factor``
    a: the kernel at a t is the network at t; ``.../loss_distance``: the mean of ``|log L - log L_flow|`` over the curve
    (its points evenly spaced in the logarithm of the steps, from the first on); ``.../largest_distance``: of
    ``|f_t - f_flow,t| / |f_T|`` at the snapshots, on test points.
    """

    name: str = "flows"
    version: int = 1

    def __call__(self, trained: Trained) -> list[Score]:
        data = [member.data for member in trained.members]
        scores = []
        for name in KERNELS:
            rows = [_rescaled(trained, i, name) for i in range(len(data))]
            columns = zip(("time_factor", "loss_distance", "largest_distance"), zip(*rows, strict=True), strict=True)
            scores += [summarise(f"{name}@flow/{metric}", list(values), data) for metric, values in columns]
        return scores

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        """``flow_loss_<kernel>``: relative train loss of descent in that kernel with the network's own steps, not
        rescaled, at the points of ``loss`` (see ``Networks``); ``rescaled_loss_<kernel>``: of the rescaled flow."""
        members = range(len(trained.members))
        return {
            f"{kind}_loss_{name}": padded([find(trained, i, name) for i in members])
            for name in KERNELS
            for kind, find in (("flow", own_time_loss), ("rescaled", _rescaled_loss))
        }


def own_time_loss(trained: Trained, member: int, name: str) -> np.ndarray:
    """Relative train loss of gradient descent in a fixed kernel with the network's own steps, at ``curve_steps``."""
    _check(trained)
    history, y, n = trained.history[member], train_labels(trained, member), trained.task(member).n_train
    kernel, f_0 = KERNELS[name](trained, member)[:n], trained.f_0[member, :n]
    outputs = course(kernel, y, history.steps, curve_steps(history).tolist(), history.momenta, f_0)
    return ((outputs - y).square().sum((1, 2)) / y.square().sum()).cpu().numpy()


def _rescaled(trained: Trained, member: int, name: str) -> tuple[float, float, float]:
    """The factor of time, the mean distance of the log losses, and the largest of the test outputs."""
    factor, distance = _time_factor(trained, member, name)
    task, f_0, y = trained.task(member), trained.f_0[member], train_labels(trained, member)
    n, kernel, history = task.n_train, KERNELS[name](trained, member), trained.history[member]
    network = outputs_at(trained, member)
    distances = []
    for f, time in zip(network, history.snapshot_times.tolist(), strict=True):
        flow = KernelPredictor(kernel[:n], base="init", time=factor * time).fit(y, f_0[:n])
        distances.append(float((f - flow.predict(kernel[n:], f_0[n:])).norm() / network[-1].norm()))
    return factor, distance, max(distances)


def _rescaled_loss(trained: Trained, member: int, name: str) -> np.ndarray:
    factor, _ = _time_factor(trained, member, name)
    rates, power = _modes(trained, member, name)
    return _flow_loss(rates, power, factor * _times(trained, member)).cpu().numpy()


@kept(64)
def _time_factor(trained: Trained, member: int, name: str) -> tuple[float, float]:
    """The factor of time whose flow is nearest to the network's loss, and that distance (mean of the log's)."""
    rates, power = _modes(trained, member, name)
    history = trained.history[member]
    loss = history.loss[curve_steps(history)].to(power)[1:]
    times = _times(trained, member)[1:]

    def nearest(exponents: np.ndarray) -> tuple[float, float]:
        tried = [(float((_flow_loss(rates, power, 10**e * times) / loss).log().abs().mean()), e) for e in exponents]
        return min(tried)

    _, coarse = nearest(np.linspace(-DECADES, DECADES, COARSE))
    step = 2 * DECADES / (COARSE - 1)
    distance, exponent = nearest(coarse + np.linspace(-step, step, FINE))
    return 10**exponent, distance


def _modes(trained: Trained, member: int, name: str) -> tuple[Tensor, Tensor]:
    """Rates of the kernel's modes, and their shares of the relative loss at the start; [n] each."""
    _check(trained)
    n, y = trained.task(member).n_train, train_labels(trained, member)
    found = spectrum(KERNELS[name](trained, member)[:n])
    residual = (found.vectors.T @ (y - trained.f_0[member, :n]).to(found.vectors))[:, 0]
    return found.eigenvalues.clamp_min(0) / n, residual.square() / y.square().sum()


def _flow_loss(rates: Tensor, power: Tensor, times: Tensor) -> Tensor:
    """[times]; no smaller than what a logarithm can take."""
    return (torch.exp(-2 * rates * times[:, None]) @ power).clamp_min(math.ulp(0.0))


def _times(trained: Trained, member: int) -> Tensor:
    """Sums of steps at the points of the curve."""
    history = trained.history[member]
    times = torch.cat([torch.zeros(1), history.steps.cumsum(0)]).double()
    return times[curve_steps(history)].to(trained.f_0.device)


def _check(trained: Trained) -> None:
    if loss_name(trained) != "mse" or trained.f_0.shape[2] != 1:
        raise UnavailableError("Training curves are compared for one output and squared error.")
    for name, value in {"optimiser": "gd", "momentum": 0.0, "weight_decay": 0.0, "accelerated": False}.items():
        if (chosen := trained.settings.get(name, value)) != value:
            raise UnavailableError(f"trainer.{name}={chosen}: the sum of steps is then no time of a gradient flow.")
