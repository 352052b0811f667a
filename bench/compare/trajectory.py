"""While it trains: how well regression with the kernel of that moment, K_t, matches the network at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bench.compare.alignment import alignment
from bench.compare.metrics import clean_labels, loss_name, network_outputs, r2, relative_error, skill_of, train_labels
from bench.compare.predictions import empirical_predictions, outputs_at, regress
from bench.record import Score
from bench.trained import Trained


@dataclass(frozen=True)
class Trajectory:
    """R2, skill and test error of K_t's regression at every snapshot, the kernel's way, and the network's own error."""

    name: str = "trajectory"
    version: int = 1

    def __call__(self, trained: Trained) -> list[Score]:
        return []

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        rows: list[list[dict[str, float]]] = [[] for _ in trained.members]
        for snapshot in range(trained.snapshots):
            for member, kernel in trained.ntk.at(snapshot):
                rows[member].append(_moment(trained, member, snapshot, kernel))
        arrays = {
            f"snapshot_{name}": np.array([[moment[name] for moment in row] for row in rows]) for name in rows[0][0]
        }
        arrays["snapshot_network_test_error"] = np.array(
            [
                [relative_error(f, clean_labels(trained, i), loss_name(trained)) for f in outputs_at(trained, i)]
                for i in range(len(trained.members))
            ]
        )
        arrays["snapshot_time"] = np.stack([history.snapshot_times.numpy() for history in trained.history])
        arrays["snapshot_loss"] = np.stack([history.snapshot_loss.numpy() for history in trained.history])
        return arrays


def _moment(trained: Trained, member: int, snapshot: int, kernel: Tensor) -> dict[str, float]:
    """One member's numbers at one snapshot."""
    start = _train_rows(trained.ntk[member, 0])
    now = _train_rows(kernel)
    last = trained.snapshots - 1
    if snapshot in (0, last):  # the initial and the after-kernel, which others ask for, too
        prediction = empirical_predictions(trained, -1 if snapshot == last else 0, "y", "init", 0.0)[member]
    else:
        one = kernel[:, :, 0, 0] if kernel.shape[2] == 1 else kernel
        prediction = regress(trained, member, one, "y", "init", 0.0)
    network, y = network_outputs(trained, member), clean_labels(trained, member)
    return {
        "r2": r2(prediction, network),
        "skill": skill_of(trained, member, prediction),
        "test_error": relative_error(prediction, y, loss_name(trained)),
        "motion": float((now - start).norm() / start.norm()),
        "distance": float(1 - (now * start).sum() / (now.norm() * start.norm())),
        "alignment": alignment(now.diagonal(dim1=2, dim2=3).sum(-1), train_labels(trained, member)),
    }


def _train_rows(kernel: Tensor) -> Tensor:
    return kernel[: kernel.shape[1]]
