"""The kernel machine that a homogeneous network trained with weight decay is exactly, once its training is over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.compare.comparison import UnavailableError
from bench.compare.metrics import loss_name, match_scores
from bench.compare.predictions import empirical, specific_ceilings
from bench.compare.rivals import floors
from bench.homogeneity import InhomogeneousError, degree, exact_ridge
from bench.predict import KernelPredictor
from bench.record import Score
from bench.trained import Trained


@dataclass(frozen=True)
class Exact:
    """Regression with K_T, ridge ``gamma^2 N L lambda`` and base ``-z_0 / gamma`` (zero where f is not centred).

    ``exact/relative_l2`` is zero, to the square root of the gradient left over, at a stationary point where the network
    is once differentiable; with ReLU, whose kinks settle on the data, some per cent are left (``bench.homogeneity``).
    """

    name: str = "exact"
    version: int = 1

    def __call__(self, trained: Trained) -> list[Score]:
        predictions = [self.prediction(trained, i) for i in range(len(trained.members))]
        return match_scores("exact", trained, predictions, specific_ceilings(trained, "init", 0.0), floors(trained))

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        return {"ridge_exact": np.array([self.ridge(trained, i) for i in range(len(trained.members))])}

    def ridge(self, trained: Trained, member: int) -> float:
        """In units of K_T.

        Raises:
            UnavailableError: no weight decay, another loss than squared error, or a network without a degree.
        """
        decay = float(str(trained.settings.get("weight_decay", 0.0)))
        if not decay:
            raise UnavailableError("There was no weight decay (trainer.weight_decay), and so no exact ridge.")
        if (loss := loss_name(trained)) != "mse":
            raise UnavailableError(f"trainer.loss={loss}: the exact ridge is that of squared error.")
        task = trained.task(member)
        params = {name: value[member] for name, value in trained.params_T.items()}
        try:
            found = degree(trained.net_at(member, -1), task.x_train, params)
        except InhomogeneousError as error:
            raise UnavailableError(str(error)) from error
        return exact_ridge(found, trained.gamma[member], task.n_train, decay)

    def prediction(self, trained: Trained, member: int) -> torch.Tensor:
        """[n_test, c]."""
        n, kernel = trained.task(member).n_train, empirical(trained, member, -1)
        centred = bool(trained.settings.get("centred", True))
        base = -trained.z_0(member) / trained.gamma[member] if centred else torch.zeros_like(trained.f_T[member])
        predictor = KernelPredictor(kernel[:n], self.ridge(trained, member), base="init")
        return predictor.fit(trained.task(member).y_train, base[:n]).predict(kernel[n:], base[n:])
