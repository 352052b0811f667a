"""Sizes of ``--size gpu``: every study of an after-kernel claim has one of its own, and its networks can be made."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from bench.claims import Claim, Measurement
from bench.claims.claim import Size
from bench.claims.theory import width_limits
from bench.studies.named import make, shapes_of
from bench.studies.scored_networks import ScoredNetworks, scales
from bench.studies.study import result
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


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_series_of_widths_are_told_apart(size: Size) -> None:
    """Where the two series of a claim do not have as many widths, and where they have one each."""
    for requests in (width_limits._both, width_limits._smooth_and_rich, width_limits._widest):
        listed = [request.settings for request in requests(size, SEEDS)]
        records = tuple(result(arrays={"width": np.array(settings.width)}) for settings in listed)
        turn = len(width_limits._first(records))
        kinds = [(settings.activation, settings.trainer["richness"]) for settings in listed]
        assert len(set(kinds[:turn])) == len(set(kinds[turn:])) == 1
        assert len(width_limits._second(records)) == len(records) - turn


def _width(settings: object) -> int:
    return getattr(settings, "width", None) or max(settings.widths)  # type: ignore[attr-defined]
