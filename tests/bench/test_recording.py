"""What training records: snapshots by schedule, the path kernel, sharpness; and the ends of training."""

import numpy as np
import pytest
import torch

from bench.path import path_error, path_prediction
from bench.predict import KernelPredictor
from bench.train import Trainer
from bench.trained import Member, members, seed_of
from models.cnn import cnn
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task

N = 24


def task(n_train: int = N, d: int = 8) -> Task:
    return staircase(d=d, n_train=n_train, n_test=30, seed=seed_of("data", 0))


def network(width: int = 32, d: int = 8):
    return mlp(d, width, 1, 1, b_std=0.4, readout_b_std=0.3)


def test_snapshots_by_loss_are_the_first_points_at_each_level():
    levels = (0.5, 0.1, 0.01, 1e-9)
    trained = Trainer(richness=1.0, schedule="loss", levels=levels).fit(network(), [task()], members(1, 3))
    assert trained.snapshots == 6
    for i, history in enumerate(trained.history):
        first = [int(np.argmax(history.loss.numpy() <= level)) for level in levels[:3]]
        last = len(history.steps)
        assert history.snapshot_steps.tolist() == [0, *first, last, last]  # the last level is never reached
        assert torch.equal(trained.params["1.weight"][i, 4], trained.params["1.weight"][i, 5])
    again = Trainer(richness=1.0).fit(network(), [task()], members(1, 3))
    assert torch.equal(again.params_T["1.weight"], trained.params_T["1.weight"])  # recording changes no training


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_path_kernel_is_the_network_up_to_the_step(kind):
    """Its error is of first order in the step: with a third of the step it falls to about a third."""
    if kind == "mlp":
        data, net = task(), network()
    else:
        x = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        data = Task("images", x[:12], x[:12].mean((2, 3)).sign(), x[12:], x[12:].mean((2, 3)).sign())
        net = cnn(1, 8, 1, 1, readout="gap")
    errors = {}
    for c, steps in ((0.3, 20), (0.1, 60)):
        trainer = Trainer(
            richness=1.0, step=c, constant=True, schedule="dense", dtype="float64", tolerance=0.0, max_steps=steps
        )
        trained = trainer.fit(net, [data], members(1, 1))
        errors[c] = path_error(trained, 0)
    assert errors[0.1] < 0.03
    assert 2 < errors[0.3] / errors[0.1] < 5
    # The control: the first kernel in place of all of them is not the network.
    n, kernel = data.n_train, trained.ntk[0, 0][:, :, 0, 0]
    frozen = KernelPredictor(kernel[:n], time=trained.history[0].steps).fit(data.y_train).predict(kernel[n:])
    assert float((frozen - trained.f_T[0, n:]).norm() / trained.f_T[0, n:].norm()) > 3 * errors[0.1]


def test_the_path_kernel_needs_every_step():
    trained = Trainer(max_steps=20, tolerance=0.0).fit(network(), [task()], members(1, 1))
    with pytest.raises(ValueError, match="dense"):
        path_prediction(trained, 0)


def test_dense_snapshots_of_members_that_end_apart_are_padded():
    trained = Trainer(richness=1.0, schedule="dense", tolerance=0.1).fit(network(), [task()], members(1, 3))
    lengths = [len(history.steps) for history in trained.history]
    assert len(set(lengths)) > 1
    assert trained.snapshots == max(lengths) + 1
    for history, length in zip(trained.history, lengths, strict=True):
        assert history.snapshot_steps.tolist() == [min(step, length) for step in range(max(lengths) + 1)]


@pytest.mark.parametrize("c", [0.5, 1.5, 1.9, 2.1, 2.5])
def test_beyond_two_over_lambda_max_the_top_mode_grows(c):
    """A wide network is near linear: a step multiplies the top mode of the residual by 1 - c.

    The kernel moves by some 1/width a step, times a growing residual: below a hundredth at width 4,096, 3 steps.
    """
    data, steps = task(), 4
    trainer = Trainer(
        step=c, constant=True, tolerance=0.0, max_steps=steps, schedule="dense", dtype="float64", sharpness=True
    )
    trained = trainer.fit(network(4096), [data], members(1, 1))
    assert trained.status == ("done",)
    assert torch.allclose(trained.history[0].steps, trained.history[0].steps[0])
    vectors = torch.linalg.eigh(trained.ntk[0, 0][:N, :, 0, 0]).eigenvectors
    z = torch.stack([trained_outputs(trained, k) for k in range(steps + 1)])
    modes = (z - z[0] - data.y_train[:, 0].double()) @ vectors[:, -1]
    ratio = float((modes[-1] / modes[0]).abs()) ** (1 / steps)
    assert ratio == pytest.approx(abs(1 - c), rel=0.02)
    torch.testing.assert_close(
        trained.history[0].sharpness, torch.full((steps,), c, dtype=torch.float64), rtol=0.02, atol=0
    )


def trained_outputs(trained, snapshot: int) -> torch.Tensor:
    params = {name: value[0, snapshot] for name, value in trained.params.items()}
    x = trained.task(0).x_train.double()
    return torch.func.functional_call(trained.net.double(), params, (x,))[:, 0].detach()


def test_a_catapult_comes_down_and_lambda_max_with_it():
    """Between 2 and 4 the loss rises and falls again, at a smaller lambda_max (Lewkowycz et al. 2020)."""
    trainer = Trainer(constant=True, tolerance=0.0, max_steps=150, dtype="float64", sharpness=True)
    trained = trainer.fit(
        network(512), [task()], [Member(0, i, step=2.5) for i in range(3)] + [Member(0, 0, step=40.0)]
    )
    assert trained.status == ("done",) * 3 + ("diverged",)
    for history in trained.history[:3]:
        assert float(history.loss.max()) > 1.5
        assert float(history.loss[-1]) < 0.5
        assert float(history.lambda_max[-1]) < 0.8 * float(history.lambda_max[0])


def test_sharpness_is_lambda_max_of_the_whole_kernel_times_the_step():
    trained = Trainer(richness=1.0, sharpness=True, schedule="dense", max_steps=10, tolerance=0.0, dtype="float64").fit(
        network(), [task()], members(1, 1)
    )
    history = trained.history[0]
    for step in range(10):
        kernel = trained.ntk[0, step][:N, :, 0, 0]
        expected = float(torch.linalg.eigvalsh(kernel)[-1]) / N * float(history.steps[step])
        assert float(history.sharpness[step]) == pytest.approx(expected, rel=1e-10)


def test_training_ends_at_a_time_exactly():
    trained = Trainer(richness=1.0, time=0.7, tolerance=0.0).fit(network(), [task()], members(1, 3))
    assert trained.status == ("done",) * 3
    assert trained.times.tolist() == pytest.approx([0.7] * 3, rel=1e-12)


def test_training_ends_at_a_relative_gradient():
    trained = Trainer(richness=1.0, gradient=0.05, tolerance=0.0, dtype="float64").fit(
        network(), [task()], members(1, 2)
    )
    assert trained.status == ("done",) * 2
    data = task()
    for i in range(2):
        norms = []
        for snapshot in (0, -1):
            params = {name: value[i, snapshot].requires_grad_() for name, value in trained.params.items()}
            z = torch.func.functional_call(trained.net, params, (data.x_train.double(),))
            f = (z - trained.z_0(i)[:N]) / trained.gamma[i]
            loss = (f - data.y_train).square().sum() / (2 * N)
            norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(params.values()))]).norm())
        assert float(norms[1] / norms[0]) <= 0.05 * (1 + 1e-9)
        assert len(trained.history[i].steps) > 3


def test_a_fixed_number_of_steps_is_a_goal():
    trained = Trainer(tolerance=0.0, max_steps=7).fit(network(), [task()], members(1, 2))
    assert trained.status == ("done",) * 2
    assert [len(history.steps) for history in trained.history] == [7, 7]
    assert Trainer(max_steps=7).fit(network(), [task()], members(1, 1)).status == ("unconverged",)
