"""Eigenlearning's prediction of the test error from each kernel's spectrum, next to what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.comparison import UnavailableError
from bench.compare.kept import kept
from bench.compare.metrics import clean_labels, loss_name, network_outputs, train_labels
from bench.compare.predictions import empirical, infinite_kernels, limit_of
from bench.predict import JITTER, KernelPredictor
from bench.record import Score, summarise
from bench.theory.estimators import gcv
from bench.theory.finite_population import FinitePopulation, finite_population
from bench.theory.sample import sample_spectrum
from bench.theory.trials import kernel_trials
from bench.trained import Trained, seed_of

Row = dict[str, float]


@dataclass(frozen=True)
class EigenlearningTheory:
    """Test MSE on clean labels, averaged over outputs; of several outputs the trace form of a kernel.

    ``eigenlearning_infinite``, ``eigenlearning_initial``: ``predicted``, from the spectrum of the infinite-width NTK or
    of K_0 on all points of the cell, of which the training set is a draw without replacement; ``measured``, the same
    kernel's regression; ``ratio``, measured over predicted; ``network_ratio``, the network's own error over predicted.

    ``eigenlearning_after``: K_T depends on its training set, so its spectrum is that on the *test* points. There
    ``predicted`` and ``measured`` are of ``fresh`` draws, as many as were trained on but half of them at most; ``own``
    is the error of its regression on its own training data, ``reuse_gap`` that over the prediction for as many points;
    ``gcv_invalid`` is the estimate from its own training set, over ``own``: it assumes a kernel that does not know the
    sample.

    Attributes:
        fresh: draws of the test points for each after-kernel.
    """

    fresh: int = 20
    name: str = "eigenlearning"
    version: int = 1

    def __post_init__(self) -> None:
        if self.fresh < 1:
            raise ValueError(f"compare.eigenlearning.fresh must be a whole number of at least 1, not {self.fresh}.")

    def __call__(self, trained: Trained) -> list[Score]:
        rows = {kind: [] for kind in ("infinite", "initial", "after")}  # type: dict[str, list[Row]]
        limits = self._limits(trained)
        for i, member in enumerate(trained.members):
            if member.data in limits:
                rows["infinite"].append(self._fixed(trained, i, limits[member.data]))
            rows["initial"].append(self._fixed(trained, i, _own_kernel(trained, i, 0, pooled=True)))
            rows["after"].append(self._after(trained, i))
        data = [member.data for member in trained.members]
        return [
            summarise(f"eigenlearning_{kind}/{metric}", [row[metric] for row in found], data)
            for kind, found in rows.items()
            if found
            for metric in found[0]
        ]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        return {}

    def _limits(self, trained: Trained) -> dict[int, Tensor]:
        """Data draw -> the infinite-width NTK on all its points; empty where the model has none.

        Raises:
            UnavailableError: what the theory says nothing about: other losses, or no test labels.
        """
        if (loss := loss_name(trained)) != "mse":
            raise UnavailableError(f"trainer.loss={loss}: eigenlearning predicts the error of regression.")
        clean_labels(trained, 0)
        try:
            limit = limit_of(trained)
            infinite_kernels(trained)
        except UnavailableError:
            return {}
        return {data: limit(_points(trained, data)).ntk for data in sorted({member.data for member in trained.members})}

    def _fixed(self, trained: Trained, member: int, kernel: Tensor) -> Row:
        """A kernel that does not know the training set; kernel [M, M] on all points, train rows first."""
        task = trained.task(member)
        n, noise = task.n_train, task.noise
        y = torch.cat([train_labels(trained, member), clean_labels(trained, member)]).to(kernel)
        theory = _theory(kernel, y, n, noise, noisy=n)
        predicted = float(theory.test_mse.mean())
        measured = _error(trained, member, KernelPredictor(kernel[:n, :n]).fit(y[:n]).predict(kernel[n:, :n]))
        own = _error(trained, member, network_outputs(trained, member))
        return {
            "predicted": predicted,
            "measured": measured,
            "ratio": measured / predicted,
            "network_ratio": own / predicted,
        }

    def _after(self, trained: Trained, member: int) -> Row:
        task = trained.task(member)
        kernel = _own_kernel(trained, member, -1, pooled=False)
        y = clean_labels(trained, member).to(kernel)
        drawn, noise = min(task.n_train, task.n_test // 2), task.noise
        theory = _theory(kernel, y, drawn, noise, noisy=0)
        predicted = float(theory.test_mse.mean())
        seed = trained.members[member]
        trials = kernel_trials(
            kernel, y, drawn, trials=self.fresh, noise=noise, ridge=JITTER * float(kernel.diagonal().mean()),
            generator=torch.Generator().manual_seed(seed_of("fresh", seed.data, seed.init)),
        )  # fmt: skip
        fresh = float(trials.test_mse.mean())
        on_train = empirical(trained, member, -1, "trace")
        labels = train_labels(trained, member)
        n = task.n_train
        own = _error(trained, member, KernelPredictor(on_train[:n]).fit(labels).predict(on_train[n:]))
        # For as many points as its own training set, where the test points hold them.
        same = predicted if n == drawn else float("nan")
        if drawn < n < task.n_test:
            same = float(_theory(kernel, y, n, noise, noisy=0).test_mse.mean())
        estimate = gcv((on_train[:n] + on_train[:n].T) / 2, labels).test_mse - noise
        return {
            "predicted": predicted,
            "measured": fresh,
            "ratio": fresh / predicted,
            "own": own,
            "reuse_gap": own / same,
            "gcv_invalid": float(estimate.mean()) / own,
        }


def _theory(kernel: Tensor, y: Tensor, n: int, noise: float, noisy: int) -> FinitePopulation:
    """Of n of these points; the first ``noisy`` rows of y [M, c] hold label noise, whose power is subtracted."""
    spectrum = sample_spectrum(kernel)
    power = torch.atleast_2d(spectrum.target(y).power)
    power = (power - noise * noisy / len(y) ** 2).clamp_min(0)
    return finite_population(spectrum.eigenvalues, power, n, 0.0, noise)


def _error(trained: Trained, member: int, prediction: Tensor) -> float:
    """Mean squared error on clean test labels, over points and outputs."""
    y = clean_labels(trained, member)
    return float((prediction.to(y) - y).square().mean())


@kept(2)
def _points(trained: Trained, data: int) -> Tensor:
    """All inputs of a data draw, train rows first, in float64."""
    task = trained.tasks[data]
    return torch.cat([task.x_train, task.x_test]).to(trained.f_T)


def _own_kernel(trained: Trained, member: int, snapshot: int, pooled: bool) -> Tensor:
    """The trace over outputs of K_t / c, on all points or on the test points, symmetric [M, M]."""
    task = trained.task(member)
    x = _points(trained, trained.members[member].data)
    x = x if pooled else x[task.n_train :]
    kernel: Tensor = trained.kernels([member], snapshot, x, outputs="trace")
    return kernel[0] / trained.f_T.shape[2]
