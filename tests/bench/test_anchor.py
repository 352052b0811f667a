"""The exactness anchor: with weight decay a homogeneous network ends as the regression of its own kernel."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from bench.predict import KernelPredictor
from bench.savepoint import Interrupted, Savepoint
from bench.train import Trainer
from bench.trained import Trained, members, seed_of
from models.activations import RectifiedPower
from models.layers import Linear
from tasks.hypercube import staircase

DECAY, DEGREE = 3e-3, 3  # relu^2 between two layers: z(s theta) = s^3 z(theta)


def homogeneous(width: int = 24) -> nn.Sequential:
    return nn.Sequential(Linear(8, width, w_std=2**0.5, b_std=0.4), RectifiedPower(2), Linear(width, 1))


def anchored(richness, centred: bool) -> Trained:
    task = staircase(d=8, n_train=32, n_test=60, seed=seed_of("data", 0))
    trainer = Trainer(
        richness=richness, centred=centred, weight_decay=DECAY, optimiser="lbfgs", dtype="float64", gradient=1e-6,
        tolerance=0.0,
    )  # fmt: skip
    return trainer.fit(homogeneous(), [task], members(1, 1))


def error(trained: Trained, ridge: float, base: Tensor, snapshot: int = -1) -> float:
    """Relative squared error of the kernel's prediction at the test points."""
    task, kernel, f = trained.task(0), trained.ntk[0, snapshot][:, :, 0, 0], trained.f_T[0]
    n = task.n_train
    predictor = KernelPredictor(kernel[:n], ridge, base="init").fit(task.y_train, base[:n])
    p = predictor.predict(kernel[n:], base[n:])
    return float((p - f[n:]).square().sum() / f[n:].square().sum())


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("richness", ["ntk", 0.3, 1.0])
def test_a_stationary_homogeneous_network_is_kernel_regression(richness, centred):
    trained = anchored(richness, centred)
    assert trained.status == ("done",)
    gamma, n = trained.gamma[0], trained.task(0).n_train
    base = -trained.z_0(0) / gamma if centred else torch.zeros_like(trained.f_T[0])
    ridge = gamma**2 * n * DEGREE * DECAY
    # The gradient left over is 1e-6 of the weight decay, so that the square of its effect is some 1e-12.
    assert error(trained, ridge, base) < 1e-10
    # Controls, each far above that: no ridge, the initial kernel, another degree, and, if it is centred, base 0.
    assert error(trained, 0.0, base) > 1e-4
    assert error(trained, ridge, base, snapshot=0) > 1e-2
    assert error(trained, ridge * 2 / 3, base) > 1e-6
    if centred:
        assert error(trained, ridge, torch.zeros_like(base)) > 1e-4
    if richness != "ntk":
        assert error(trained, n * DEGREE * DECAY, base) > 1e-4  # gamma^2 left out
    assert float((trained.ntk[0, -1] - trained.ntk[0, 0]).norm() / trained.ntk[0, 0].norm()) > 0.1  # it is not lazy


def test_gradient_descent_with_weight_decay_goes_to_the_same_kind_of_point():
    task = staircase(d=8, n_train=16, n_test=40, seed=seed_of("data", 0))
    trainer = Trainer(richness=1.0, weight_decay=0.03, dtype="float64", gradient=1e-6, tolerance=0.0)
    trained = trainer.fit(homogeneous(8), [task], members(1, 1))
    assert trained.status == ("done",)
    gamma = trained.gamma[0]
    assert error(trained, gamma**2 * 16 * DEGREE * 0.03, -trained.z_0(0) / gamma) < 1e-10


def test_stopped_every_few_evaluations_it_ends_with_the_same_bits(tmp_path):
    """Looks are every 20 iterations, of one evaluation or more each: 60 evaluations pass one, and stop between two."""
    task = staircase(d=8, n_train=16, n_test=20, seed=seed_of("data", 0))
    trainer = Trainer(
        richness=1.0, weight_decay=0.01, optimiser="lbfgs", dtype="float64", gradient=1e-6, tolerance=0.0
    )  # fmt: skip
    whole = trainer.fit(homogeneous(8), [task], members(1, 2))
    assert whole.status == ("done", "done")
    for stops in range(100):  # noqa: B007
        asked = iter([False] * 60 + [True])
        savepoint = Savepoint(tmp_path / "state", stop=lambda asked=asked: next(asked))
        with contextlib.suppress(Interrupted):
            (part,) = trainer.parts(homogeneous(8), [task], members(1, 2), savepoint=lambda batch, s=savepoint: s)
            break
    assert stops > 2
    assert torch.equal(part.f_T, whole.f_T)
    assert all(torch.equal(part.params[name], whole.params[name]) for name in whole.params)
    for one, other in zip(part.history, whole.history, strict=True):
        assert torch.equal(one.loss, other.loss)


@pytest.mark.parametrize("missing", [{"dtype": "float32"}, {"gradient": 0.0}, {"weight_decay": 0.0}])
def test_the_anchor_needs_float64_a_gradient_and_weight_decay(missing):
    settings = {"optimiser": "lbfgs", "dtype": "float64", "gradient": 1e-6, "weight_decay": 1e-3}
    with pytest.raises(ValueError, match=r"trainer.optimiser=lbfgs needs"):
        Trainer(**{**settings, **missing})
