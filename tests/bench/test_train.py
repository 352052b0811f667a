"""The trainer against hand-written gradient descent, and its ends."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import bench.descent
from bench.predict import KernelPredictor
from bench.train import Trainer
from bench.trained import Member, members, seed_of
from models.cnn import cnn
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task


def draws(count: int = 2, n_train: int = 24) -> list[Task]:
    return [staircase(d=8, n_train=n_train, n_test=30, seed=seed_of("data", i)) for i in range(count)]


def network(width: int = 32) -> nn.Sequential:
    return mlp(8, width, 1, 1, b_std=0.4, readout_b_std=0.3)


def test_members_reach_the_tolerance_and_record_it():
    trained = Trainer(richness=1.0).fit(network(), draws(), members(2, 2))
    assert trained.status == ("done",) * 4
    assert bool((trained.losses <= 1e-4).all())
    for i, history in enumerate(trained.history):
        task = trained.task(i)
        error = trained.f_T[i, : task.n_train] - task.y_train.double()
        relative = error.square().sum() / task.y_train.double().square().sum()
        assert float(relative) == pytest.approx(float(history.loss[-1]), rel=1e-2)  # float32 forward against float64
        assert len(history.loss) == len(history.steps) + 1
        assert history.snapshot_steps[0] == 0
        assert history.snapshot_steps[-1] == len(history.steps)


def test_readout_only_training_is_exactly_linear():
    trainer = Trainer(richness=1.0, readout_only=True, dtype="float64", tolerance=1e-3, max_steps=3000)
    trained = trainer.fit(network(256), draws(1), members(1, 1))
    n, history = 24, trained.history[0]
    kernel = trained.ntk[0, 0][:, :, 0, 0]
    torch.testing.assert_close(kernel, trained.ntk[0, -1][:, :, 0, 0], rtol=1e-12, atol=1e-12)
    predictor = KernelPredictor(kernel[:n], time=history.steps).fit(trained.task(0).y_train)
    error = (predictor.predict(kernel) - trained.f_T[0]).norm() / trained.f_T[0].norm()
    assert float(error) < 1e-8
    # The control: training every layer is not linear at this width.
    rich = Trainer(richness=1.0, dtype="float64", tolerance=1e-3).fit(network(256), draws(1), members(1, 1))
    kernel = rich.ntk[0, 0][:, :, 0, 0]
    predictor = KernelPredictor(kernel[:n], time=rich.history[0].steps).fit(rich.task(0).y_train)
    assert float((predictor.predict(kernel) - rich.f_T[0]).norm() / rich.f_T[0].norm()) > 1e-3


def test_a_batch_trains_each_member_as_alone():
    tasks = draws()
    settings = {"richness": 0.5, "dtype": "float64"}
    together = Trainer(**settings).fit(network(), tasks, members(2, 2))
    alone = Trainer(**settings).fit(network(), tasks, [Member(1, 1)])
    torch.testing.assert_close(together.f_T[3], alone.f_T[0], rtol=1e-6, atol=1e-6)


def test_the_same_settings_give_the_same_bits():
    runs = [Trainer(richness=1.0).fit(network(), draws(), members(2, 2)) for _ in range(2)]
    assert torch.equal(runs[0].f_T, runs[1].f_T)


def test_one_host_read_an_iteration(monkeypatch):
    reads = []
    real = bench.descent.host
    monkeypatch.setattr(bench.descent, "host", lambda values: reads.append(1) or real(values))
    trained = Trainer(richness=0.03).fit(network(), draws(1), members(1, 1))
    assert len(reads) == len(trained.history[0].loss)


def test_a_step_too_long_is_taken_back():
    trained = Trainer(richness=3.0, step=3.9).fit(network(), draws(1), members(1, 2))
    for history in trained.history:
        lowest = history.loss.cummin(0).values
        assert bool((history.loss[1:] <= lowest[:-1] * (1 + bench.descent.RISE)).all())


def test_unfinished_and_diverged_members_say_so():
    trained = Trainer(max_steps=3).fit(network(), draws(1), members(1, 1))
    assert trained.status == ("unconverged",)
    assert len(trained.history[0].steps) == 3
    infinite = draws(1)[0]
    infinite = Task(infinite.name, infinite.x_train * 1e30, infinite.y_train, infinite.x_test, infinite.y_test)
    assert Trainer(max_steps=50).fit(network(), [infinite], members(1, 1)).status == ("diverged",)


def test_a_kernel_that_explodes_at_every_step_ends(monkeypatch):
    """At richness 10^9 a step changes lambda_max by 10^16: it is halved until one holds.

    At most 100 steps of each of two members, and before each at most 20 halvings (SMALLEST_SHRINK), of two iterations.
    """
    reads = []
    real = bench.descent.host

    def host(values):
        reads.append(1)
        assert len(reads) < 2 * 100 * (1 + 2 * 20), "it halves for ever"
        return real(values)

    monkeypatch.setattr(bench.descent, "host", host)
    trained = Trainer(richness=1e9, max_steps=100).fit(network(8), draws(1, 16), members(1, 2))
    assert all(0 < len(history.steps) <= 100 for history in trained.history)
    assert all(float(history.loss[-1]) < 0.9 for history in trained.history)  # and it learns


def test_inits_are_nested_in_data_draws():
    trained = Trainer(max_steps=1).fit(network(), draws(), members(2, 2))
    first = next(iter(trained.params_0.values()))
    assert len({tuple(start.flatten().tolist()) for start in first}) == 4
    wider = Trainer(max_steps=1).fit(network(), draws(), [Member(1, 0)])
    assert torch.equal(first[2], next(iter(wider.params_0.values()))[0])  # but the same member is the same


def images(size: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 1, size, size, generator=generator), torch.randn(12, 1, generator=generator).sign()
    return Task("images", x[:8], y[:8], x[8:], y[8:])


def test_cnns_train_one_at_a_time_but_for_the_smallest_and_to_the_same_end():
    small, large = (cnn(1, width, 1, 1, readout="flatten", image_size=size) for width, size in ((16, 4), (64, 16)))
    trainer = Trainer(richness=1.0, tolerance=1e-2, dtype="float64")
    assert len(trainer.batches(small, [images(4)], members(1, 2))) == 1
    assert len(trainer.batches(large, [images(16)], members(1, 2))) == 2
    together = trainer.fit(small, [images(4)], members(1, 2))
    apart = replace(trainer, method="loop").fit(small, [images(4)], members(1, 2))
    assert together.status == apart.status == ("done", "done")
    # The same steps but for rounding, 1e-16, which some hundred steps make a little larger.
    torch.testing.assert_close(together.f_T, apart.f_T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "settings",
    [{"richness": -1.0}, {"richness": "rich"}, {"step": 5.0}, {"tolerance": -0.1}, {"max_steps": 0}, {"snapshots": 1},
     {"device": "tpu"}, {"dtype": "float16"},
     {"step": 1.5, "accelerated": True}, {"richness": math.nan}],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f"trainer.{next(iter(settings))}"):
        Trainer(**settings)


def test_richness_needs_ntk_parameterization():
    net = mlp(8, 16, 1, 1, parameterization="standard")
    with pytest.raises(ValueError, match="parameterization"):
        Trainer(richness=1.0).fit(net, draws(1), members(1, 1))


def test_acceleration_is_nesterovs_by_hand():
    task, net = draws(1)[0], network()
    trained = Trainer(richness=0.3, dtype="float64", accelerated=True, step=1.0).fit(net, [task], members(1, 1))
    history, gamma = trained.history[0], trained.gamma[0]
    names = list(trained.params)
    x, y = task.x_train.double(), task.y_train.double()
    point = [trained.params_0[name][0].double().requires_grad_() for name in names]
    reached = [p.detach().clone() for p in point]

    def z(values):
        return torch.func.functional_call(net.double(), dict(zip(names, values, strict=True)), (x,))

    z_0 = z(point).detach()
    for eta, momentum in zip(history.steps.tolist(), history.momenta.tolist(), strict=True):
        loss = ((z(point) - z_0) / gamma - y).square().sum() / (2 * len(x))
        ends = [p.detach() - eta * gamma**2 * g for p, g in zip(point, torch.autograd.grad(loss, point), strict=True)]
        point = [(e + momentum * (e - r)).requires_grad_() for e, r in zip(ends, reached, strict=True)]
        reached = ends
    for name, value in zip(names, point, strict=True):
        torch.testing.assert_close(trained.params_T[name][0], value.detach(), rtol=1e-7, atol=1e-9)
    assert history.momenta[:3].tolist() == [0, 1 / 4, 2 / 5]


def test_acceleration_needs_fewer_steps_and_its_linear_model_is_exact():
    settings = {"richness": 0.03, "readout_only": True, "dtype": "float64", "tolerance": 1e-3, "max_steps": 3000}
    plain = Trainer(**settings).fit(network(256), draws(), members(2, 1))
    fast = Trainer(**settings, accelerated=True, step=1.0).fit(network(256), draws(), members(2, 1))
    for one, other in zip(plain.history, fast.history, strict=True):
        assert len(other.steps) < 0.5 * len(one.steps)
    history, kernel = fast.history[0], fast.ntk[0, 0][:, :, 0, 0]
    predictor = KernelPredictor(kernel[:24], time=history.steps, momenta=history.momenta).fit(fast.task(0).y_train)
    difference = (predictor.predict(kernel) - fast.f_T[0]).norm() / fast.f_T[0].norm()
    assert float(difference) < 1e-8
    forgotten = KernelPredictor(kernel[:24], time=history.steps).fit(fast.task(0).y_train)
    assert float((forgotten.predict(kernel) - fast.f_T[0]).norm() / fast.f_T[0].norm()) > 1e-3


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(8, 1), nn.Linear(8, 4)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "tasks", "who", "named"),
    [
        (network(), draws(1)[0], members(1, 1), r"write \[task\]"),
        (network(), [], members(1, 1), "tasks must be a list"),
        (network(), draws(1), [], "members must be a list"),
        (network(), draws(1), members(2, 1), "name 2 data draws, and tasks has 1"),
        (network(), [*draws(1), *draws(1, 12)], members(2, 1), "of one shape"),
        (mlp(5, 16, 1, 1), draws(1), members(1, 1), r"does not take the inputs \[n, 8\]"),
        (mlp(8, 16, 1, 3), draws(1), members(1, 1), "has 3 outputs"),
        (Unused(), draws(1), members(1, 1), r"parameter spare\.bias"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(model, tasks, who, named):
    with pytest.raises(ValueError, match=named) as caught:
        Trainer(max_steps=2, tolerance=0.0).fit(model, tasks, who)
    assert "\n" not in str(caught.value)


def test_a_spare_parameter_that_is_frozen_is_no_mistake():
    net = Unused()
    net.spare.requires_grad_(False)
    assert Trainer(max_steps=2, tolerance=0.0).fit(net, draws(1), members(1, 1)).members == tuple(members(1, 1))
