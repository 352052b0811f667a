"""The training curve of a model that is linear in what it trains is its own kernel's flow, with the clock as it is."""

from __future__ import annotations

import numpy as np
import pytest

from bench.compare import Flows, UnavailableError
from bench.compare.flows import own_time_loss
from bench.compare.motion import curve_steps
from bench.train import Trainer
from bench.trained import Trained, members, seed_of
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.tabular import digits


def fit(**settings: object) -> Trained:
    task = staircase(d=8, n_train=24, n_test=40, seed=seed_of("data", 0))
    trainer = Trainer(**{"dtype": "float64", "tolerance": 0.0, "max_steps": 150, **settings})
    return trainer.fit(mlp(8, 64, 1, 1, b_std=0.4, readout_b_std=0.3), [task], members(1, 2))


def test_a_linear_model_is_its_own_flow() -> None:
    trained = fit(readout_only=True, step=0.05)
    found = {score.name: score.value for score in Flows()(trained)}
    # A step of c = .05 is a flow to c / 2 = 2.5 % in the rate of the fastest mode, and to less in all others.
    assert found["initial@flow/time_factor"] == pytest.approx(1, abs=0.025)
    assert found["initial@flow/loss_distance"] < 0.02
    assert found["initial@flow/largest_distance"] < 0.02
    # Only the read-out trains, and its kernel does not depend on its values.
    assert found["after@flow/largest_distance"] == pytest.approx(found["initial@flow/largest_distance"], rel=1e-9)
    # The infinite-width NTK is also that of the first layer, which does not train here: it is another curve.
    assert found["infinite_ntk@flow/largest_distance"] > 0.1


def test_the_networks_own_steps_give_the_loss_to_rounding() -> None:
    trained = fit(readout_only=True)
    history = trained.history[0]
    measured = history.loss.numpy()[curve_steps(history)]
    np.testing.assert_allclose(own_time_loss(trained, 0, "initial"), measured, rtol=1e-8)
    arrays = Flows().arrays(trained)
    np.testing.assert_allclose(arrays["flow_loss_initial"][0, : len(measured)], measured, rtol=1e-8)
    assert np.isnan(arrays["flow_loss_initial"][0, len(measured) :]).all()


def test_a_clock_that_runs_k_times_as_fast_is_found() -> None:
    """A kernel k times as large is the same flow in k times the time."""
    trained = fit(readout_only=True, step=0.05)
    kernel = trained.ntk._kept.kernels
    _ = trained.ntk[0, -1], trained.ntk[0, 0]
    last = max(snapshot for member, snapshot in kernel if member == 0)
    kernel[0, last] = kernel[0, 0] * 4
    factor = next(s for s in Flows()(trained) if s.name == "after@flow/time_factor").per_member[0]
    assert factor == pytest.approx(1 / 4, rel=0.03)


def test_what_has_no_time_of_a_flow_is_refused() -> None:
    with pytest.raises(UnavailableError, match="no time of a gradient flow"):
        Flows()(fit(momentum=0.5))


def test_several_outputs_are_refused() -> None:
    task = digits(classes=[0, 1, 2], n_train=24, n_test=30, seed=0)
    trained = Trainer(tolerance=0.1).fit(mlp(64, 32, 1, 3), [task], members(1, 1))
    with pytest.raises(UnavailableError, match="one output"):
        Flows()(trained)
