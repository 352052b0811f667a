"""Predictors that are linear in fixed features: the network linearised at its start, and its own last hidden layer."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from bench.compare.comparison import UnavailableError
from bench.compare.metrics import match_scores, train_labels
from bench.compare.predictions import empirical, regress, specific_ceilings
from bench.compare.rivals import floors
from bench.predict import KernelPredictor
from bench.record import Score
from bench.train import weight_layers
from bench.trained import Trained


@dataclass(frozen=True)
class Linearised:
    """The network linearised at its initial parameters and trained with the very same steps: K_0 at the same time t."""

    name: str = "linearised"
    version: int = 1

    def __call__(self, trained: Trained) -> list[Score]:
        for name, value in {"loss": "mse", "optimiser": "gd", "momentum": 0.0, "weight_decay": 0.0}.items():
            if (chosen := trained.settings.get(name, value)) != value:
                raise UnavailableError(f"trainer.{name}={chosen}: only steps on squared error have a closed form.")
        predictions = [self.prediction(trained, i) for i in range(len(trained.members))]
        ceilings = specific_ceilings(trained, "init", 0.0)
        return match_scores("linearised", trained, predictions, ceilings, floors(trained))

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        return {}

    def prediction(self, trained: Trained, member: int) -> Tensor:
        """[n_test, c]."""
        n, f_0 = trained.task(member).n_train, trained.f_0[member]
        kernel = empirical(trained, member, 0)
        history = trained.history[member]
        momenta = history.momenta if bool(history.momenta.any()) else None
        predictor = KernelPredictor(kernel[:n], base="init", time=history.steps, momenta=momenta)
        predictor.fit(train_labels(trained, member), f_0[:n])
        return predictor.predict(kernel[n:], f_0[n:])


@dataclass(frozen=True)
class Features:
    """The conjugate kernel: regression on the trained network's last hidden layer."""

    name: str = "features"
    base: str = "init"
    version: int = 1

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
