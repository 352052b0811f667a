"""The axes of members, each against training by hand, one network at a time."""

import math

import pytest
import torch
from torch import Tensor

from bench.train import Trainer
from bench.trained import Member, Trained, members, seed_of
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task

N, TEST = 24, 30


def network(width: int = 16):
    return mlp(8, width, 1, 1, b_std=0.4, readout_b_std=0.3)


def draws(count: int = 1) -> list[Task]:
    return [staircase(d=8, n_train=N, n_test=TEST, seed=seed_of("data", i)) for i in range(count)]


def basis(count: int = 4) -> Task:
    """Labels [n, count]: the first few parities, each a target of its own."""
    task = draws()[0]

    def parities(x: Tensor) -> Tensor:
        return torch.stack([x[:, i] * x[:, (2 * i + 1) % 8] for i in range(count)], 1)

    return Task("basis", task.x_train, parities(task.x_train), task.x_test, parities(task.x_test))


def by_hand(trained: Trained, member: int, decay: float = 0.0, centred: bool = True) -> list[Tensor]:
    """The end of plain gradient descent with the recorded steps, in float64, by autograd on a single network."""
    task, gamma, net = trained.task(member), trained.gamma[member], network().double()
    x, y = task.x_train.double(), task.y_train.double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(trained.params_0[name][member])
    z_0 = net(x).detach() if centred else torch.zeros_like(y)
    for eta in trained.history[member].steps.tolist():
        loss = ((net(x) - z_0) / gamma - y).square().sum() / (2 * len(x))
        loss = loss + decay / 2 * sum(p.square().sum() for p in net.parameters())
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= eta * gamma**2 * gradient
    return [parameter.detach() for parameter in net.parameters()]


def agrees(trained: Trained, member: int, **settings) -> None:
    for (name, value), expected in zip(trained.params_T.items(), by_hand(trained, member, **settings), strict=True):
        # float64, some hundred steps of some hundred additions: 1e-12 with a margin for growth along the way.
        torch.testing.assert_close(value[member], expected, rtol=1e-9, atol=1e-10, msg=name)


AXES = [Member(0, 0), Member(0, 1, richness=0.3), Member(0, 0, step=0.5), Member(0, 0, rate=0.05), Member(1, 0)]


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 1e-3}, {"centred": False}])
def test_every_axis_in_one_batch_is_each_network_by_hand(settings):
    trainer = Trainer(richness=1.0, dtype="float64", max_steps=60, tolerance=0.1, **settings)
    trained = trainer.fit(network(), draws(2), AXES)
    options = {"decay": settings.get("weight_decay", 0.0), "centred": settings.get("centred", True)}
    for member in range(len(AXES)):
        agrees(trained, member, **options)
    assert trained.gamma == (4.0, 1.2, 4.0, 4.0, 4.0)
    assert bool((trained.history[3].steps == 0.05).all())
    # At the first step every lambda_max is that of the same network: the rates are as their c.
    first = [float(history.steps[0]) for history in trained.history]
    assert first[0] / first[2] == pytest.approx(3.0)
    assert len({len(history.steps) for history in trained.history}) > 1  # they end one by one


def test_each_basis_function_is_a_target_from_a_shared_start():
    task = basis()
    trainer = Trainer(richness=1.0, dtype="float64", tolerance=1e-3)
    trained = trainer.fit(network(), [task], members(1, 2, target=range(4)))
    assert trained.f_T.shape == (8, N + TEST, 1)
    assert trained.status == ("done",) * 8
    for i, member in enumerate(trained.members):
        assert torch.equal(trained.task(i).y_test, task.y_test[:, [member.target]])
        alone = Task(
            "one", task.x_train, task.y_train[:, [member.target]], task.x_test, task.y_test[:, [member.target]]
        )
        single = trainer.fit(network(), [alone], [Member(0, member.init)])
        torch.testing.assert_close(trained.f_T[i], single.f_T[0], rtol=1e-6, atol=1e-6)
    starts = trained.params_0["1.weight"]
    assert torch.equal(starts[0], starts[3])
    assert not torch.equal(starts[0], starts[4])
    with pytest.raises(ValueError, match="target 4"):
        trainer.fit(network(), [task], [Member(0, 0, target=4)])


def test_a_crossed_init_is_the_same_on_every_draw():
    trained = Trainer(max_steps=1).fit(network(), draws(2), members(2, 1, crossed=True) + members(2, 1))
    starts = trained.params_0["1.weight"]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[2], starts[3])


def test_names_are_distinct_and_as_they_were():
    everything = members(2, 2, 2, richness=(None, 0.5, "ntk"), step=(None, 1.0), rate=(None, 0.1), target=(None, 0, 1))
    everything += members(2, 2, crossed=True)
    assert len({member.name for member in everything}) == len(everything) == 2 * 2 * 2 * 3 * 2 * 2 * 3 + 4
    assert Member(1, 2).name == "data1-init2-order0"


def test_an_uncentred_network_starts_at_its_own_output():
    trained = Trainer(richness=1.0, centred=False, tolerance=1e-3).fit(network(), draws(), members(1, 2))
    for i in range(2):
        torch.testing.assert_close(trained.f_0[i], trained.z_0(i) / trained.gamma[i], rtol=1e-12, atol=1e-12)
        y = trained.task(i).y_train.double()
        relative = (trained.f_T[i, :N] - y).square().sum() / y.square().sum()
        assert float(relative) == pytest.approx(float(trained.losses[i]), rel=1e-2)


def test_a_batch_too_large_for_memory_is_cut(monkeypatch):
    import bench.grouping

    tasks, all_members = draws(), members(1, 5)
    whole = Trainer(max_steps=5, tolerance=0.0, dtype="float64").fit(network(), tasks, all_members)
    net = network()
    parameters = sum(p.numel() for p in net.parameters())
    # Bytes of two members: (5 + 24) copies of the parameters; 17 activations three times, and 8 inputs, a sample.
    each = 8 * (29 * parameters + N * (3 * 17 + 8))
    monkeypatch.setattr(bench.grouping, "budget", lambda memory, outs: 2 * each)
    trainer = Trainer(max_steps=5, tolerance=0.0, dtype="float64")
    assert [len(batch) for batch in trainer.batches(net, tasks, all_members)] == [2, 2, 1]
    torch.testing.assert_close(trainer.fit(net, tasks, all_members).f_T, whole.f_T, rtol=1e-9, atol=1e-9)


def test_members_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"trainer\.step"):
        Trainer().fit(network(), draws(), [Member(0, 0, step=5.0)])
    with pytest.raises(ValueError, match=r"trainer\.rate"):
        Trainer().fit(network(), draws(), [Member(0, 0, rate=-1.0)])
    assert math.isnan(
        float(Trainer(max_steps=1, rate=0.1).fit(network(), draws(), [Member(0, 0)]).history[0].lambda_max[0])
    )
