"""Comparisons of networks trained by cross-entropy or with weight decay, against numpy and scipy written out."""

import dataclasses

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from sklearn.svm import SVC
from torch import nn

from bench.compare import Empirical, Exact, InfiniteWidth, Linearised, Margin, Networks, Rivals, UnavailableError
from bench.studies.named import named_model, named_task
from bench.train import Trainer
from bench.trained import Trained, members, seed_of
from models.activations import RectifiedPower
from models.layers import Linear
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task


def named(scores, name):
    return next(score for score in scores if score.name == name)


@pytest.fixture(scope="module")
def binary() -> Trained:
    tasks = [named_task("digits", 40, 60, seed_of("data", i)) for i in range(2)]
    return Trainer(1.0, loss="logistic", tolerance=0.02).fit(named_model("mlp", tasks[0], 32), tasks, members(2, 1))


@pytest.fixture(scope="module")
def several() -> Trained:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    y = torch.nn.functional.one_hot(x[:, :3].argmax(1), 3).float() - 1 / 3
    task = Task("three", x[:30], y[:30], x[30:], y[30:])
    return Trainer(1.0, loss="softmax", tolerance=0.05).fit(mlp(6, 32, 1, 3), [task], members(1, 2))


def flow(K, y, end):
    """Outputs at all rows of the logistic flow in the kernel K [n_all, n] at the train cross-entropy ``end``."""
    n = len(y)

    def loss(w):
        return np.logaddexp(0, -y[:, 0] * (K[:n] @ w)).mean()

    def met(_, w):
        return loss(w) - end

    met.terminal = True
    found = scipy.integrate.solve_ivp(
        lambda _, w: y[:, 0] * scipy.special.expit(-y[:, 0] * (K[:n] @ w)) / n, (0, 1e8), np.zeros(n), "Radau",
        rtol=1e-8, atol=1e-10, events=met,
    )  # fmt: skip
    return K @ found.y_events[0][0]


def test_the_after_kernel_flows_to_the_networks_own_cross_entropy(binary):
    scores = Empirical("after")(binary)
    r2, correlation = [], []
    for i in range(2):
        task, f = binary.task(i), binary.f_T[i].numpy()
        n, y = task.n_train, task.y_train.double().numpy()
        end = np.logaddexp(0, -y * f[:n]).mean()
        assert end / np.log(2) == pytest.approx(float(binary.losses[i]), rel=1e-3)  # trained in float32
        p = flow(binary.ntk[i, -1][:, :, 0, 0].numpy(), y, end)[n:]
        r2.append(1 - ((p - f[n:, 0]) ** 2).sum() / ((f[n:, 0] - f[n:, 0].mean()) ** 2).sum())
        correlation.append(np.corrcoef(p, f[n:, 0])[0, 1] ** 2)
    assert named(scores, "after/r2").per_member == pytest.approx(r2, abs=1e-3)  # a step's error is 1e-5 of the outputs
    assert named(scores, "after/squared_correlation").per_member == pytest.approx(correlation, abs=1e-3)
    assert not any("@self" in score.name for score in scores)
    assert named(scores, "after/r2").floor is not None
    # The control: regression to the labels is no model of logits.
    K, y = binary.ntk[0, -1][:, :, 0, 0].numpy(), binary.task(0).y_train.double().numpy()
    p, f = K[40:] @ np.linalg.solve(K[:40], y[:, 0]), binary.f_T[0, 40:, 0].numpy()
    assert 1 - ((p - f) ** 2).sum() / ((f - f.mean()) ** 2).sum() < r2[0] - 0.1


def test_the_labels_know_the_answer_up_to_its_scale(binary):
    scores = Rivals()(binary)
    assert named(scores, "labels/skill").value == pytest.approx(0)
    for i in range(2):
        f, y = binary.f_T[i, 40:, 0].numpy(), binary.task(i).y_test[:, 0].double().numpy()
        best = min(((a * y - f) ** 2).sum() for a in np.linspace(0, 20, 20001))
        expected = 1 - best / ((f - f.mean()) ** 2).sum()
        assert named(scores, "labels/r2").per_member[i] == pytest.approx(expected, abs=1e-5)


def test_test_errors_are_cross_entropies_over_that_of_zero(binary, several):
    f, y = binary.f_T[0, 40:, 0].numpy(), binary.task(0).y_test[:, 0].double().numpy()
    expected = np.logaddexp(0, -y * f).mean() / np.log(2)
    assert named(Networks()(binary), "network/test_error").per_member[0] == pytest.approx(expected)
    f, labels = several.f_T[0, 30:], several.task(0).y_test.argmax(1)
    expected = float(torch.nn.functional.cross_entropy(f, labels)) / np.log(3)
    assert named(Networks()(several), "network/test_error").per_member[0] == pytest.approx(expected)


def test_three_classes_run_through_every_comparison(several):
    for comparison in (Empirical("after"), Empirical("initial"), InfiniteWidth(), Rivals(), Margin(), Linearised()):
        values = {score.name: score.value for score in comparison(several)}
        assert np.isfinite(list(values.values())).all(), comparison
        assert any(name.endswith("/squared_correlation") for name in values)
        assert all(np.isfinite(array).all() or "loss" in name for name, array in comparison.arrays(several).items())


def test_linearised_repeats_the_networks_steps_on_its_loss(binary):
    task, history = binary.task(0), binary.history[0]
    K, y, n = binary.ntk[0, 0][:, :, 0, 0].numpy(), task.y_train[:, 0].double().numpy(), 40
    f, losses = np.zeros(len(K)), [np.log(2)]
    for step in history.steps.tolist():
        f = f + step / n * K @ (y * scipy.special.expit(-y * f[:n]))
        losses.append(np.logaddexp(0, -y * f[:n]).mean())
    network = binary.f_T[0, n:, 0].numpy()
    expected = 1 - ((f[n:] - network) ** 2).sum() / ((network - network.mean()) ** 2).sum()
    assert named(Linearised()(binary), "linearised/r2").per_member[0] == pytest.approx(expected, abs=1e-6)
    found = Linearised().arrays(binary)["linearised_loss"][0]
    assert found[0] == pytest.approx(1)
    assert found[np.isfinite(found)][-1] == pytest.approx(losses[-1] / np.log(2))


def test_the_margin_is_that_of_scikit_learns_machine(binary):
    scores = Margin()(binary)
    for kernel, snapshot in (("after", -1), ("initial", 0)):
        expected = []
        for i in range(2):
            K, y = binary.ntk[i, snapshot][:, :, 0, 0].numpy(), binary.task(i).y_train[:, 0].numpy()
            mirrored = np.block([[K[:40], -K[:40]], [-K[:40], K[:40]]])  # takes the intercept away
            machine = SVC(C=1e12, kernel="precomputed", tol=1e-8).fit(mirrored, np.concatenate([y, -y]))
            decision = machine.decision_function(np.concatenate([K, -K], 1))[40:]
            expected.append(np.corrcoef(decision, binary.f_T[i, 40:, 0].numpy())[0, 1])
        assert named(scores, f"{kernel}@margin/decision_correlation").per_member == pytest.approx(expected, abs=1e-5)
    assert named(scores, "after@margin/class_agreement").value > 0.8


def test_a_margin_needs_classes_and_says_so():
    task = staircase(d=8, n_train=24, n_test=40)
    trained = Trainer(1.0, tolerance=1e-2).fit(mlp(8, 32, 1, 1, b_std=0.4), [task], members(1, 1))
    with pytest.raises(UnavailableError, match="name no classes"):
        Margin()(trained)


def anchored(net: nn.Module, **settings) -> Trained:
    task = staircase(d=8, n_train=32, n_test=60, seed=seed_of("data", 0))
    trainer = Trainer(
        1.0, weight_decay=1e-3, optimiser="lbfgs", dtype="float64", gradient=1e-6, tolerance=0.0, **settings
    )
    return trainer.fit(net, [task], members(1, 2))


@pytest.mark.parametrize("centred", [True, False])
def test_the_exact_machine_is_the_network(centred):
    net = nn.Sequential(Linear(8, 24, w_std=2**0.5, b_std=0.4), RectifiedPower(2), Linear(24, 1))
    trained = anchored(net, centred=centred)
    # The gradient left over is 1e-6 of the weight decay: the distance of the outputs is of that order.
    assert max(named(Exact()(trained), "exact/relative_l2").per_member) < 1e-5
    assert named(Empirical("after")(trained), "after/relative_l2").value > 1e-2  # the control: without the ridge
    gamma = 24**0.5
    np.testing.assert_allclose(Exact().arrays(trained)["ridge_exact"], gamma**2 * 32 * 3 * 1e-3, rtol=1e-6)


def test_what_has_no_exact_machine_says_why(binary):
    inhomogeneous = anchored(mlp(8, 24, 1, 1, activation="erf", b_std=0.4), max_steps=1)
    with pytest.raises(UnavailableError, match="not homogeneous"):
        Exact()(inhomogeneous)
    with pytest.raises(UnavailableError, match="no weight decay"):
        Exact()(binary)
    settings = {**binary.settings, "weight_decay": 0.1}
    with pytest.raises(UnavailableError, match="squared error"):
        Exact()(dataclasses.replace(binary, settings=settings))
