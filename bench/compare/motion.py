"""How far the kernel moved, in size and direction; and the networks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.comparison import UnavailableError
from bench.compare.metrics import agreement, clean_labels, loss_name, network_outputs, relative_error
from bench.compare.predictions import infinite_kernels, other_seeds
from bench.record import Score, summarise
from bench.trained import History, Trained

POINTS = 200
"""Of a loss curve, log-spaced in steps: enough for a picture."""


@dataclass(frozen=True)
class Motion:
    """``|K_T - K_0| / |K_0|`` and its parts, on the training points; spectra before, after and at infinite width."""

    name: str = "motion"
    version: int = 3

    def __call__(self, trained: Trained) -> list[Score]:
        columns: dict[str, list[float]] = {}
        outputs = trained.f_T.shape[2]
        for i in range(len(trained.members)):
            K_0, K_T = train_kernel(trained, i, 0), train_kernel(trained, i, -1)
            row = {
                "motion": float((K_T - K_0).norm() / K_0.norm()),
                "distance": float(1 - (K_0 * K_T).sum() / (K_0.norm() * K_T.norm())),
                "growth": float(K_T.norm() / K_0.norm()),
            }
            if (limit := self._limit(trained, i)) is not None:
                row["initial_to_infinite"] = float((K_0 / outputs - limit).norm() / limit.norm())
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        data = [member.data for member in trained.members]
        return [summarise(f"kernel/{name}", values, data) for name, values in columns.items()]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        members = range(len(trained.members))
        arrays = {
            "spectrum_initial": np.stack([spectrum(train_kernel(trained, i, 0)) for i in members]),
            "spectrum_after": np.stack([spectrum(train_kernel(trained, i, -1)) for i in members]),
        }
        outputs = trained.f_T.shape[2]  # the others are traces over the outputs
        limits = {trained.members[i].data: limit for i in members if (limit := self._limit(trained, i)) is not None}
        spectra = {data: spectrum(outputs * limit) for data, limit in limits.items()}
        if spectra:
            arrays["spectrum_infinite"] = np.stack([spectra[member.data] for member in trained.members])
        return arrays

    def _limit(self, trained: Trained, member: int) -> Tensor | None:
        try:
            kernel = infinite_kernels(trained)[trained.members[member].data]["ntk"]
        except UnavailableError:
            return None
        return kernel[: kernel.shape[1]]


@dataclass(frozen=True)
class Networks:
    """The trained networks themselves: their errors, their agreement with other inits, their outputs and curves."""

    name: str = "network"
    version: int = 1

    def __call__(self, trained: Trained) -> list[Score]:
        data = [member.data for member in trained.members]
        loss = loss_name(trained)
        train = "network/relative_train_mse" if loss == "mse" else "network/relative_train_loss"
        scores = [summarise(train, trained.losses.tolist(), data)]
        if trained.labelled:
            pairs = [(network_outputs(trained, i), clean_labels(trained, i)) for i in range(len(data))]
            scores.append(summarise("network/test_error", [relative_error(f, y, loss) for f, y in pairs], data))
            scores.append(summarise("network/class_error", [1 - agreement(f, y) for f, y in pairs], data))
        others = other_seeds(trained, "init", 0.0)
        for name, column in (
            ("network/r2", "network/r2"),
            ("after_other_seed/r2", "after/r2"),
            ("after_other_seed/skill", "after/skill"),
        ):
            if np.isfinite(others[column]).all():
                scores.append(summarise(name, others[column], data))
        return scores

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        members = range(len(trained.members))
        labels = {"y_test": torch.stack([task.y_test.to(trained.f_T) for task in trained.tasks]).cpu().numpy()}
        return {
            "f_test": torch.stack([network_outputs(trained, i) for i in members]).cpu().numpy(),
            **(labels if trained.labelled else {}),
            "member_data": np.array([member.data for member in trained.members]),
            "member_init": np.array([member.init for member in trained.members]),
            **_curves(trained),
        }


def train_kernel(trained: Trained, member: int, snapshot: int) -> Tensor:
    """The trace over outputs of the NTK on the training points, [n, n]."""
    kernel = trained.ntk[member, snapshot].diagonal(dim1=2, dim2=3).sum(-1)
    return kernel[: kernel.shape[1]]


def spectrum(kernel: Tensor) -> np.ndarray:
    """Eigenvalues of K / N, the largest first."""
    return (torch.linalg.eigvalsh(kernel).flip(0) / len(kernel)).cpu().numpy()


def curve_steps(history: History) -> np.ndarray:
    """Counts of steps at which a curve is kept, log-spaced, at most ``POINTS``; the first and the last among them."""
    last = len(history.loss) - 1
    return np.unique(np.concatenate([[0], np.geomspace(1, max(last, 1), POINTS - 1).astype(int)]).clip(0, last))


def padded(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of at most ``POINTS`` numbers as rows, [m, POINTS]; nan where a curve has none."""
    rows = np.full((len(curves), POINTS), np.nan)
    for row, curve in zip(rows, curves, strict=True):
        row[: len(curve)] = curve
    return rows


def _curves(trained: Trained) -> dict[str, np.ndarray]:
    kept = [curve_steps(history) for history in trained.history]
    times = [np.concatenate([[0.0], history.steps.cumsum(0).numpy()]) for history in trained.history]
    return {
        "loss_time": padded([time[steps] for time, steps in zip(times, kept, strict=True)]),
        "loss": padded([history.loss.numpy()[steps] for history, steps in zip(trained.history, kept, strict=True)]),
    }
