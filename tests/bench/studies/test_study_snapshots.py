"""Descent in a kernel that is held between snapshots, against the linearised network; and class codes."""

from __future__ import annotations

import pytest
import torch

from bench.compare.linear import linearised
from bench.compare.metrics import network_outputs, r2
from bench.studies.scored_networks import ScoredNetworks, train
from bench.studies.snapshot_hierarchy import _r2


def test_one_kernel_in_every_stretch_is_the_linearised_network() -> None:
    trainer = {"richness": 1.0, "tolerance": 0.0, "max_steps": 40, "snapshots": 6}
    trained = train(ScoredNetworks("staircase", 32, trainer, (), (0,), {"d": 8, "n_train": 24, "n_test": 40}))
    K_0 = trained.ntk[0, 0][:, :, 0, 0]
    steps = len(trained.history[0].steps)
    expected = r2(linearised(trained, 0, [steps])[-1][24:], network_outputs(trained, 0))
    for parts in (1, 2, 5):
        assert _r2(trained, 0, [K_0] * trained.snapshots, parts) == pytest.approx(expected, abs=1e-9)
    own = [trained.ntk[0, k][:, :, 0, 0] for k in range(trained.snapshots)]
    assert _r2(trained, 0, own, 5) > expected  # the order of time is in it
    assert _r2(trained, 0, own, 5) != _r2(trained, 0, own, 5, backwards=True)


@pytest.mark.parametrize("codes", ["balanced", "independent"])
def test_classes_have_codes_of_signs(codes: str) -> None:
    trainer = {"tolerance": 0.0, "max_steps": 1}
    task = {"classes": None, "n_train": 60, "n_test": 60}
    plain, coded = (
        train(ScoredNetworks("digits", 8, trainer, (), (0,), task, codes=kind)).task(0) for kind in ("", codes)
    )
    assert torch.equal(plain.x_train, coded.x_train)
    y, classes = torch.cat([coded.y_train, coded.y_test]), torch.cat([plain.y_train, plain.y_test]).argmax(1)
    assert set(y.flatten().tolist()) == {-1.0, 1.0}
    for number in range(10):
        assert len(y[classes == number].unique(dim=0)) == 1  # one code a class
    assert len(y.unique(dim=0)) == 10  # and different ones
    assert bool((y.sum(1) == 0).all()) == (codes == "balanced")
