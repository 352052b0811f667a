"""The after-kernel, the initial kernel and the infinite-width kernels, each as a predictor of the trained network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.compare.metrics import match_scores
from bench.compare.predictions import (
    Form,
    Target,
    agnostic_ceilings,
    check_base,
    empirical_predictions,
    infinite_kernels,
    regress,
    specific_ceilings,
    targets_of,
)
from bench.compare.rivals import floors
from bench.record import Score
from bench.trained import Trained


@dataclass(frozen=True)
class Empirical:
    """Regression with a network's own kernel: K_T, used as if it had always been there, or K_0.

    With several outputs, its trace and sum forms (``empirical``) are scored too, as "<name>#trace" and "<name>#sum".

    Attributes:
        name: "after" (K_T) or "initial" (K_0); also the predictor's name in the scores.
        targets: "y", the training labels, and "self", the network's own training outputs.
        base: "init" (f_0, which is zero for a centred network) or "zero"; never f_T.
    """

    name: str = "after"
    targets: tuple[Target, ...] = ("y", "self")
    base: str = "init"
    ridge: float = 0.0
    version: int = 2

    def __post_init__(self) -> None:
        if self.name not in ("after", "initial"):
            raise ValueError(f"compare.{self.name}: an empirical kernel is 'after' or 'initial'.")
        check_settings(self.name, self.targets, self.base, self.ridge)

    def predictions(self, trained: Trained, target: Target, form: Form = "full") -> tuple[Tensor, ...]:
        snapshot = -1 if self.name == "after" else 0
        return empirical_predictions(trained, snapshot, target, self.base, self.ridge, form)

    def __call__(self, trained: Trained) -> list[Score]:
        asked: list[tuple[str, Target, Form]] = [
            (labelled(self.name, t), t, "full") for t in targets_of(trained, self.targets)
        ]
        if trained.f_T.shape[2] > 1:
            asked += [(f"{self.name}#trace", "y", "trace"), (f"{self.name}#sum", "y", "sum")]
        ceilings = specific_ceilings(trained, self.base, self.ridge)
        return [
            score
            for name, target, form in asked
            for score in match_scores(name, trained, self.predictions(trained, target, form), ceilings, floors(trained))
        ]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        stacked = torch.stack(self.predictions(trained, "y"))
        return {f"prediction_{self.name}": stacked.cpu().numpy()}


@dataclass(frozen=True)
class InfiniteWidth:
    """Regression with the infinite-width NTK (the lazy theory, at any richness) and the NNGP.

    Attributes: as for ``Empirical``.
    """

    name: str = "infinite"
    targets: tuple[Target, ...] = ("y", "self")
    base: str = "init"
    ridge: float = 0.0
    version: int = 2

    def __post_init__(self) -> None:
        check_settings(self.name, self.targets, self.base, self.ridge)

    def predictions(self, trained: Trained, kind: str, target: Target) -> list[Tensor]:
        kernels = infinite_kernels(trained)
        return [
            regress(trained, i, kernels[member.data][kind], target, self.base, self.ridge)
            for i, member in enumerate(trained.members)
        ]

    def __call__(self, trained: Trained) -> list[Score]:
        infinite_kernels(trained)  # before the ceilings, which cost more: there may be no limit
        ceilings = agnostic_ceilings(trained, self.base, self.ridge)
        return [
            score
            for kind in ("ntk", "nngp")
            for target in targets_of(trained, self.targets)
            for score in match_scores(
                labelled(f"infinite_{kind}", target),
                trained,
                self.predictions(trained, kind, target),
                ceilings,
                floors(trained),
            )
        ]

    def arrays(self, trained: Trained) -> dict[str, np.ndarray]:
        stacked = torch.stack(self.predictions(trained, "ntk", "y"))
        return {"prediction_infinite_ntk": stacked.cpu().numpy()}


def labelled(name: str, target: Target) -> str:
    return name if target == "y" else f"{name}@{target}"


def check_settings(name: str, targets: tuple[Target, ...], base: str, ridge: float) -> None:
    if not targets or any(target not in ("y", "self") for target in targets):
        raise ValueError(f"compare.{name}.targets must be some of y, self, not {list(targets)}.")
    check_base(name, base)
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
        raise ValueError(f"compare.{name}.ridge must be a number of at least 0, not {ridge!r}.")
