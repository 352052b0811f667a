"""Hard-margin machines in the networks' kernels: where training by cross-entropy would go in the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.comparison import UnavailableError
from bench.compare.kept import kept
from bench.compare.metrics import agreement, clean_labels, network_outputs, squared_correlation, train_labels
from bench.compare.predictions import empirical, infinite_kernels
from bench.margin import MarginPredictor
from bench.record import Score, summarise
from bench.trained import Trained


@dataclass(frozen=True)
class Margin:
    """The maximum-margin classifier of K_T, K_0 and the infinite-width NTK, of the classes that the labels name.

    Scores ``after@margin/...``, ``initial@margin/...``, ``infinite_ntk@margin/...``: ``decision_correlation`` with the
    network's outputs on test points, and its square (several outputs: each point's less their mean over classes, which
    says nothing); ``class_agreement`` with the network; ``class_error`` against the clean labels. Scale is left out:
    that of a margin machine is a convention.
    """

    name: str = "margin"
    version: int = 1

    def __call__(self, trained: Trained) -> list[Score]:
        columns: dict[str, list[float]] = {}
        for kernel, decisions in margin_predictions(trained).items():
            for i, decision in enumerate(decisions):
                network = centred(network_outputs(trained, i))
                row = {
                    "decision_correlation": correlation(decision, network),
                    "squared_correlation": squared_correlation(decision, network),
                    "class_agreement": agreement(decision, network),
                }
                if trained.labelled:
                    row["class_error"] = 1 - agreement(decision, clean_labels(trained, i))
                for metric, value in row.items():
                    columns.setdefault(f"{kernel}@margin/{metric}", []).append(value)
        data = [member.data for member in trained.members]
        return [summarise(name, values, data) for name, values in columns.items()]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        found = margin_predictions(trained)
        return {f"decision_{kernel}": torch.stack(values).cpu().numpy() for kernel, values in found.items()}


@kept(1)
def margin_predictions(trained: Trained) -> dict[str, tuple[Tensor, ...]]:
    """Kernel -> decision values [n_test, c] a member, less their mean over classes where there are several.

    Raises:
        UnavailableError: the labels name no classes, or a kernel does not separate them.
    """
    kernels = {
        "after": lambda i: empirical(trained, i, -1),
        "initial": lambda i: empirical(trained, i, 0),
        "infinite_ntk": lambda i: infinite_kernels(trained)[trained.members[i].data]["ntk"],
    }
    try:
        infinite_kernels(trained)
    except UnavailableError:
        del kernels["infinite_ntk"]
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, kernel_of in kernels.items():
        decisions = []
        for i in range(len(trained.members)):
            y = train_labels(trained, i)
            if len(torch.unique(y)) != 2 or len(torch.unique(y.argmax(1) if y.shape[1] > 1 else y)) < 2:
                raise UnavailableError("The labels name no classes: a margin needs two values of them, +1 and -1.")
            kernel = kernel_of(i)
            try:
                machine = MarginPredictor(kernel[: len(y)]).fit(y)
            except ValueError as error:
                raise UnavailableError(f"{name}: {error}") from error
            decisions.append(centred(machine.predict(kernel[len(y) :])))
        found[name] = tuple(decisions)
    return found


def centred(outputs: Tensor) -> Tensor:
    """[n, c] less the mean over classes; a single output as it is."""
    return outputs if outputs.shape[1] == 1 else outputs - outputs.mean(1, keepdim=True)


def correlation(one: Tensor, two: Tensor) -> float:
    """Of all outputs together, each less its mean over points."""
    a, b = ((values - values.mean(0)).flatten() for values in (one, two))
    return float(a @ b / (a.norm() * b.norm()))
