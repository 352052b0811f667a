"""Sizes of ``--size gpu``: every study of an after-kernel claim has one of its own, and its networks can be made."""

from __future__ import annotations

import importlib

import pytest
import torch

from bench.claims import Claim, Measurement
from bench.studies.named import make, shapes_of
from bench.studies.scored_networks import ScoredNetworks, scales
from bench.train import Trainer
from bench.trained import seed_of

MODULES = ("exact_laws", "initial_kernel", "multi_output", "rich_regime", "training_curves", "width_limits")
LISTS = [importlib.import_module(f"bench.claims.theory.{name}") for name in MODULES]
ITEMS = [item for module in LISTS for item in [*module.CLAIMS, *getattr(module, "MEASUREMENTS", ())]]
SEEDS = (0, 1)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_the_gpu_size_is_another(item: Claim | Measurement) -> None:
    small, large = ({request.name: request for request in item.requests(size, SEEDS)} for size in ("cpu", "gpu"))
    assert large
    wider = [request.settings for request in large.values()]
    assert max(map(_width, wider)) > max(_width(request.settings) for request in small.values())


def test_gpu_sized_networks_can_be_made() -> None:
    """On the meta device, where a width of 16384 takes no memory; the tasks for real, at one seed."""
    found = {
        request.name: request.settings
        for item in ITEMS
        for request in item.requests("gpu", SEEDS)
        if isinstance(request.settings, ScoredNetworks)
    }
    assert len(found) > 20
    for settings in found.values():
        task = make("task", settings.task, **{**settings.task_settings, "seed": seed_of("data", SEEDS[0])})
        with torch.device("meta"):
            chosen = {"width": settings.width, "depth": settings.depth, "activation": settings.activation}
            net = make("model", "mlp", shapes_of(task), **chosen, **scales(settings.activation))
        trainer = Trainer(**settings.trainer)
        trainer.check(net)
        assert net(task.x_train.to("meta")).shape == task.y_train.shape


def _width(settings: object) -> int:
    return getattr(settings, "width", None) or max(settings.widths)  # type: ignore[attr-defined]
