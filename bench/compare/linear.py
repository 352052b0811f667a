"""Predictors that are linear in fixed features: the network linearised at its start, and its own last hidden layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from bench.compare.comparison import UnavailableError
from bench.compare.kept import kept
from bench.compare.metrics import clean_labels, loss_name, match_scores, relative_error, train_labels
from bench.compare.motion import curve_steps, padded
from bench.compare.predictions import check_base, empirical, outputs_at, regress, specific_ceilings
from bench.compare.rivals import floors
from bench.logistic import logistic_course
from bench.losses import loss_of
from bench.networks import weight_layers
from bench.predict import course
from bench.record import Score, summarise
from bench.trained import History, Trained


@dataclass(frozen=True)
class Linearised:
    """The network linearised at its initial parameters and trained with the very same steps: K_0 at the same time t.

    Beside the network all along: ``linearised/largest_distance`` is the largest ``|f_t - f_lin,t| / |f_T|`` of the
    snapshots on the test points (Lee et al. 2019, "Wide neural networks of any depth evolve as linear models").
    """

    name: str = "linearised"
    version: int = 2

    def __call__(self, trained: Trained) -> list[Score]:
        members = range(len(trained.members))
        predictions = [linearised(trained, i, curve_steps(trained.history[i]))[-1] for i in members]
        scores = match_scores(
            "linearised",
            trained,
            [p[trained.task(i).n_train :] for i, p in enumerate(predictions)],
            specific_ceilings(trained, "init", 0.0),
            floors(trained),
        )
        largest = [float(_distances(trained, i).max()) for i in members]
        data = [member.data for member in trained.members]
        return [*scores, summarise("linearised/largest_distance", largest, data)]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        """``linearised_loss`` beside ``loss``; ``snapshot_linearised_distance`` and ``..._test_error``."""
        members = range(len(trained.members))
        loss = loss_of(loss_name(trained))
        losses = []
        for i in members:
            f = linearised(trained, i, curve_steps(trained.history[i]))[:, : trained.task(i).n_train]
            y = train_labels(trained, i)
            labels = y.expand(f.shape)
            losses.append((loss.value(f, labels) / loss.value(torch.zeros_like(f), labels)).cpu().numpy())
        arrays = {
            "linearised_loss": padded(losses),
            "snapshot_linearised_distance": torch.stack([_distances(trained, i) for i in members]).cpu().numpy(),
        }
        if trained.labelled:
            errors = [
                [relative_error(f, clean_labels(trained, i), loss_name(trained)) for f in _snapshots(trained, i)]
                for i in members
            ]
            arrays["snapshot_linearised_test_error"] = np.array(errors)
        return arrays


def linearised(trained: Trained, member: int, at: Sequence[int] | np.ndarray) -> Tensor:
    """The linearised network after some of the network's steps, [len(at), n_train + n_test, c].

    Args:
        at: counts of steps, of ``curve_steps`` or of the snapshots.

    Raises:
        UnavailableError: the network was not trained by known steps of gradient descent, or with weight decay.
    """
    for name, value in {"optimiser": "gd", "momentum": 0.0, "weight_decay": 0.0}.items():
        if (chosen := trained.settings.get(name, value)) != value:
            raise UnavailableError(f"trainer.{name}={chosen}: only full-batch steps on the loss alone are repeated.")
    return _linearised(trained, member)[np.searchsorted(_looks(trained.history[member]), at)]


def _looks(history: History) -> np.ndarray:
    """All counts of steps after which anything asks for the linearised network, ascending."""
    return np.union1d(curve_steps(history), history.snapshot_steps.numpy())


@kept(16)
def _linearised(trained: Trained, member: int) -> Tensor:
    """At all looks, [looks, n_train + n_test, c]: the eigenvectors of K_0 are found once."""
    at = _looks(trained.history[member]).tolist()
    history, y, f_0 = trained.history[member], train_labels(trained, member), trained.f_0[member]
    kernel = empirical(trained, member, 0)
    loss = loss_name(trained)
    if loss == "mse":
        return course(kernel, y, history.steps, at, history.momenta, f_0)
    return logistic_course(kernel, y, history.steps, at, loss, history.momenta, f_0)


def _snapshots(trained: Trained, member: int) -> Tensor:
    """The linearised network at the snapshots on the test points, [S, n_test, c]."""
    at = trained.history[member].snapshot_steps.tolist()
    return linearised(trained, member, at)[:, trained.task(member).n_train :]


def _distances(trained: Trained, member: int) -> Tensor:
    """``|f_t - f_lin,t| / |f_T|`` at the snapshots, [S]."""
    network = outputs_at(trained, member)
    return (network - _snapshots(trained, member)).flatten(1).norm(dim=1) / network[-1].norm()


@dataclass(frozen=True)
class Features:
    """The conjugate kernel: regression on the trained network's last hidden layer."""

    name: str = "features"
    base: str = "init"
    version: int = 2

    def __post_init__(self) -> None:
        check_base("features", self.base)

    def __call__(self, trained: Trained) -> list[Score]:
        predictions = [
            regress(trained, i, conjugate_kernel(trained, i), "y", self.base, 0.0) for i in range(len(trained.members))
        ]
        ceilings = specific_ceilings(trained, self.base, 0.0)
        return match_scores("features", trained, predictions, ceilings, floors(trained))

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        return {}


def conjugate_kernel(trained: Trained, member: int) -> Tensor:
    """The read-out's share of the after-kernel, per output: ``w_std^2 h h' / fan_in + b_std^2`` in NTK terms.

    Returns:
        [n_train + n_test, n_train].
    """
    net = copy.deepcopy(trained.net_at(member, -1)).double()
    task, readout = trained.task(member), weight_layers(net)[-1]
    x = torch.cat([task.x_train, task.x_test]).to(trained.f_T)
    seen: list[Tensor] = []
    handle = readout.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    try:
        params = {name: value[member].double() for name, value in trained.params_T.items()}
        functional_call(net, params, (x,))
    finally:
        handle.remove()
    h = seen[0].flatten(1)
    if getattr(readout, "parameterization", "standard") == "ntk":
        weight, bias = float(getattr(readout, "w_std")) ** 2 / h.shape[1], getattr(readout, "b_std") or 0.0  # noqa: B009
    else:
        weight, bias = 1.0, 1.0
    has_bias = getattr(readout, "bias", None) is not None
    return weight * h @ h[: task.n_train].T + (float(bias) ** 2 if has_bias else 0.0)
