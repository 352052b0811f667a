"""Learning curves: every number of a small run again, from Jacobians and numpy."""

import numpy as np
import pytest
import torch

from bench.report.formats import measured
from bench.report.panels import study_page
from bench.studies.learning_curves import LearningCurves, learning_curves
from bench.studies.named import disjoint_draws, named_model, named_task, part
from bench.train import Trainer
from bench.trained import Member, seed_of

SETTINGS = LearningCurves(width=32, n=(12, 24, 48), n_test=60, seeds=(0, 1), tolerance=1e-3, richness=1.0)


def jacobian(net, params, x):
    names = list(params)

    def outputs(*values):
        return torch.func.functional_call(net.double(), dict(zip(names, values, strict=True)), (x.double(),))[:, 0]

    parts = torch.autograd.functional.jacobian(outputs, tuple(params[name].double() for name in names))
    return torch.cat([part.flatten(1) for part in parts], 1).numpy()


@pytest.mark.slow
def test_every_error_is_that_of_the_regression_it_names():
    record = learning_curves(SETTINGS)
    assert record.status == "done"
    pool = named_task("staircase", 96, 60, seed_of("data", 1))
    net = named_model("mlp", pool, 32)
    y_test = pool.y_test.double().numpy()
    fresh = part(pool, range(48, 96))
    for column, n in enumerate(SETTINGS.n):
        own = part(pool, range(n))
        trained = Trainer(1.0, tolerance=1e-3).fit(net, [own], [Member(0, 1)])

        def error(params, x, y):
            J, J_test = jacobian(net, params, x), jacobian(net, params, pool.x_test)
            p = J_test @ J.T @ np.linalg.solve(J @ J.T, y.double().numpy())
            return ((p - y_test) ** 2).sum() / (y_test**2).sum()

        after = {name: value[0] for name, value in trained.params_T.items()}
        before = {name: value[0] for name, value in trained.params_0.items()}
        expected = {
            "network": ((trained.f_T[0, n:].numpy() - y_test) ** 2).sum() / (y_test**2).sum(),
            "after": error(after, own.x_train, own.y_train),
            "initial": error(before, own.x_train, own.y_train),
        }
        for name, value in expected.items():
            assert record.arrays[f"error_{name}"][1, column] == pytest.approx(value, rel=1e-5), name
        for place, used in enumerate(SETTINGS.n):
            value = error(after, fresh.x_train[:used], fresh.y_train[:used])
            assert record.arrays["error_fresh"][1, column, place] == pytest.approx(value, rel=1e-5)
    assert record.arrays["error_after_fresh"][0, 2] == record.arrays["error_fresh"][0, 2, 2]
    for name in ("network", "after", "after_fresh", "initial", "infinite", "after_of_48"):
        slopes = record.score(f"{name}/exponent")
        assert slopes.n_seeds == 2
        assert np.isfinite(slopes.standard_error)
        assert measured(slopes) in study_page(record)
    # Of two seeds, the jackknife is twice the slope of the mean curve less the mean of the two slopes.
    slopes = [np.polyfit(np.log(SETTINGS.n), np.log(row), 1)[0] for row in record.arrays["error_initial"]]
    whole = np.polyfit(np.log(SETTINGS.n), np.log(record.arrays["error_initial"].mean(0)), 1)[0]
    assert record.score("initial/exponent").value == pytest.approx(np.mean(slopes) - 2 * whole)


def test_own_and_fresh_data_are_disjoint_and_draws_too():
    pool = named_task("staircase", 96, 60, seed_of("data", 0))
    rows = torch.cat([pool.x_train, pool.x_test])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    draws = disjoint_draws("staircase", 3, 32, 60, 7)
    assert all(torch.equal(draw.x_test, draws[0].x_test) for draw in draws)
    rows = torch.cat([draw.x_train for draw in draws])
    assert len(torch.unique(rows, dim=0)) == 96


def test_a_convolutional_network_is_named_with_the_tasks_shape():
    images = named_task("digits", 8, 8, 0)
    assert named_model("mlp", images, 16)(images.x_train).shape == (8, 1)
    with pytest.raises(ValueError, match="Unknown task 'parrot': use one of"):
        named_task("parrot", 8, 8, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": (32,)}, "n must be"),
        ({"n": (64, 32)}, "n must be"),
        ({"fit_from": 512}, "fit_from"),
        ({"inits": 0}, "inits"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LearningCurves(**settings)


def test_networks_that_are_not_done_are_no_numbers():
    record = learning_curves(LearningCurves(width=16, n=(16, 32), n_test=40, seeds=(0,), max_steps=2))
    assert record.status == "unconverged"
    assert np.isnan(record.arrays["error_network"]).all()
    assert np.isfinite(record.arrays["error_infinite"]).all()
    assert record.score("network/exponent") is None
