"""SGD, momentum, Adam and the cross-entropies against torch's own optimisers and losses, one network at a time."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.losses import LOSSES, loss_of
from bench.optimisers import adam_factors
from bench.train import Trainer
from bench.trained import Member, Trained, seed_of
from models.cnn import cnn
from models.layers import Linear
from models.mlp import mlp
from tasks.task import Task

N, B = 22, 8  # the last of three mini-batches is smaller


def network(outputs: int = 1, width: int = 16) -> nn.Sequential:
    return mlp(6, width, 2, outputs, b_std=0.4, readout_b_std=0.3)


def task(kind: str, seed: int = 0) -> Task:
    x = torch.randn(N + 20, 6, generator=torch.Generator().manual_seed(seed))
    score = torch.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3] - x[:, 4]], 1)
    if kind == "softmax":
        y = functional.one_hot(score.argmax(1), 3).float() - 1 / 3
    else:
        y = score[:, :1].sign() if kind == "logistic" else score[:, :1]
    return Task(kind, x[:N], y[:N], x[N:], y[N:])


def torch_loss(kind: str, f: Tensor, y: Tensor) -> Tensor:
    if kind == "softmax":
        return functional.cross_entropy(f, y.argmax(1))
    if kind == "logistic":
        return functional.binary_cross_entropy_with_logits(f, (y + 1) / 2)
    return (f - y).square().sum() / (2 * len(f))


MEMBERS = [Member(0, 0), Member(0, 1, richness=0.3), Member(0, 0, order=1), Member(1, 0)]


def expected(trained: Trained, member: int, kind: str, make) -> list[Tensor]:
    """The parameters to which a torch optimiser comes, on the mini-batches that the member's seed names."""
    this, gamma = trained.task(member), trained.gamma[member]
    net = network(this.outputs).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(trained.params_0[name][member])
    x, y = this.x_train.double(), this.y_train.double()
    z_0 = net(x).detach()
    optimiser = make(net, gamma)
    one = trained.members[member]
    generator = torch.Generator().manual_seed(seed_of("order", one.data, one.init, one.order))
    size = trained.settings["batch_size"] or N
    rates = trained.history[member].steps.tolist()
    while rates:
        order = torch.randperm(N, generator=generator) if size < N else torch.arange(N)
        for rows in order.split(size):
            rate = rates.pop(0)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            optimiser.zero_grad()
            torch_loss(kind, (net(x[rows]) - z_0[rows]) / gamma, y[rows]).backward()
            optimiser.step()
    return [parameter.detach() for parameter in net.parameters()]


def plain_sgd(momentum: float):
    def make(net, gamma):
        groups = [{"params": list(net.parameters()), "factor": gamma**2}]
        return torch.optim.SGD(groups, lr=1.0, momentum=momentum)

    return make


def plain_adam(net, gamma):
    # Adam's step does not depend on the size of the gradient but for epsilon, here multiplied with its gamma.
    groups = [{"params": [p], "factor": 1 / 4 if name == "3.weight" else 1.0} for name, p in net.named_parameters()]
    return torch.optim.Adam(groups, lr=1.0, eps=1e-8 / gamma)


CASES = {
    "sgd": ({"optimiser": "sgd", "batch_size": B, "step": 0.5}, plain_sgd(0.0)),
    "sgd, momentum": ({"optimiser": "sgd", "batch_size": B, "momentum": 0.8, "rate": 0.02}, plain_sgd(0.8)),
    "gd, momentum": ({"momentum": 0.8, "step": 0.5}, plain_sgd(0.8)),
    "gd": ({"step": 0.5}, plain_sgd(0.0)),
    "adam": ({"optimiser": "adam", "rate": 0.01}, plain_adam),
    "adam, batches": ({"optimiser": "adam", "rate": 0.01, "batch_size": B}, plain_adam),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_members_goes_where_torchs_optimiser_goes(case, kind):
    settings, make = CASES[case]
    trainer = Trainer(richness=0.5, loss=kind, dtype="float64", tolerance=0.0, max_steps=12, **settings)
    tasks = [task(kind, seed) for seed in (0, 1)]
    trained = trainer.fit(network(tasks[0].outputs), tasks, MEMBERS)
    assert trained.status == ("done",) * 4
    for i, member in enumerate(trained.members):
        ends = zip(trained.params_T.items(), expected(trained, i, kind, make), strict=True)
        for (name, value), other in ends:
            # float64; Adam divides by gradients near 1e-8 at times, which rounding moves by 1e-8 of themselves.
            torch.testing.assert_close(value[i], other, rtol=1e-7, atol=1e-8, msg=f"{name} of {member}")
        f = trained.f_T[i, :N]
        y = trained.task(i).y_train.double()
        relative = torch_loss(kind, f, y) / torch_loss(kind, torch.zeros_like(f), y)
        assert float(trained.losses[i]) == pytest.approx(float(relative), rel=1e-9)
    same = torch.allclose(trained.params_T["1.weight"][0], trained.params_T["1.weight"][2], rtol=1e-9, atol=1e-10)
    assert same == (settings.get("batch_size") is None)  # another order is another network, where there is an order


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_have_the_gradient_and_the_curvature_of_torchs(kind):
    this = task(kind)
    f = torch.randn(2, N, this.outputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = this.y_train.double().expand_as(f)
    loss = loss_of(kind)
    leaf = f.clone().requires_grad_()
    value = loss.value(leaf, y)
    for m in range(2):
        assert float(value[m].detach()) == pytest.approx(float(torch_loss(kind, f[m], y[m])), rel=1e-12)
    (gradient,) = torch.autograd.grad(N * value.sum(), leaf)
    torch.testing.assert_close(loss.gradient(f, y), gradient, rtol=1e-12, atol=1e-12)
    hessian = torch.autograd.functional.hessian(lambda point: torch_loss(kind, point[None], y[0, :1]), f[0, 0])
    root = loss.root(f)[0, 0]
    torch.testing.assert_close(root @ root.T, hessian, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_cross_entropy_trains_to_its_tolerance_by_steps_that_grow(kind):
    """As the points are learnt the loss flattens, and the step, 2 over its sharpness at most, grows with it."""
    this = task(kind)
    net = network(this.outputs, width=128)
    trained = Trainer(loss=kind, tolerance=1e-2).fit(net, [this], [Member(0, 0)])
    assert trained.status == ("done",)
    assert len(trained.history[0].steps) < 2000
    steps, lambdas = trained.history[0].steps, trained.history[0].lambda_max
    assert float(steps[-1]) > 3 * float(steps[0])
    # At the start p = 1/c everywhere: the sharpness is that of K_0, seen through the loss's constant curvature.
    kernel, c = trained.ntk[0, 0][:N], this.outputs
    p = torch.full((c,), 1 / c, dtype=torch.float64)
    curvature = torch.diag(p) - torch.outer(p, p) if c > 1 else torch.full((1, 1), 0.25, dtype=torch.float64)
    matrix = torch.einsum("ijab,bd->iajd", kernel, curvature).reshape(N * c, N * c)
    expected = float(torch.linalg.eigvals(matrix).real.max()) / N
    assert float(lambdas[0]) == pytest.approx(expected, rel=1e-4)


def test_sgd_that_explodes_is_stepped_back():
    settings = {"richness": 1.0, "optimiser": "sgd", "batch_size": 4, "step": 3.9, "max_steps": 600}
    free = Trainer(**settings, constant=True).fit(network(), [task("mse")], [Member(0, 0)])
    assert free.status == ("diverged",) or float(free.history[0].loss.max()) > 4
    history = Trainer(**settings).fit(network(), [task("mse")], [Member(0, 0)]).history[0]
    lowest = history.loss.cummin(0).values
    assert bool((history.loss <= 2 * lowest * (1 + 1e-12)).all())
    assert float(history.loss[-1]) < 1  # it learns


def test_adams_rate_falls_with_fan_in_in_the_hidden_layers_only():
    names = [name for name, _ in network(width=64).named_parameters()]
    factors = dict(zip(names, adam_factors(network(width=64), names), strict=True))
    assert factors.pop("3.weight") == 1 / 8
    assert set(factors.values()) == {1.0}
    net = cnn(3, 16, 3, 1, readout="gap")
    names = [name for name, _ in net.named_parameters()]
    factors = adam_factors(net, names)
    assert sorted(factors)[:2] == [1 / 12, 1 / 12]  # 16 channels of 3 x 3: sqrt(144)
    assert sorted(factors)[2] == 1.0
    standard = nn.Sequential(Linear(4, 16, parameterization="standard"), nn.ReLU(),
                             Linear(16, 16, parameterization="standard"), nn.ReLU(), nn.Linear(16, 1))  # fmt: skip
    assert adam_factors(standard, ["2.weight"]) == [1 / 16]


def test_adams_pre_activations_move_alike_at_every_width():
    """With the factor 1/sqrt(fan_in) a hidden layer's own step moves its pre-activations by as much at width 1,024 as
    at 64; without it, by 4 times as much."""
    moved = {}
    for width in (64, 1024):
        net = network(width=width)
        trained = Trainer(richness=1.0, optimiser="adam", rate=0.01, tolerance=0.0, max_steps=1).fit(
            net, [task("mse")], [Member(0, i) for i in range(4)]
        )
        change = trained.params_T["3.weight"] - trained.params_0["3.weight"]
        start = {name: value[0] for name, value in trained.params_0.items()}
        hidden = torch.func.functional_call(
            net[:3], {k: v for k, v in start.items() if k[0] in "12"}, (task("mse").x_train,)
        )
        moved[width] = float((hidden @ change[0].T / math.sqrt(width)).square().mean().sqrt())
    assert 0.5 < moved[1024] / moved[64] < 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimiser": "sgd"}, "batch_size"), ({"optimiser": "adam"}, "rate"), ({"batch_size": 4}, "batch_size"),
        ({"momentum": 1.0}, "momentum"), ({"optimiser": "adam", "rate": 0.1, "momentum": 0.5}, "momentum"),
        ({"optimiser": "sgd", "batch_size": 4, "accelerated": True, "step": 1.0}, "accelerated"),
        ({"optimiser": "newton"}, "optimiser"), ({"loss": "hinge"}, "loss"), ({"levels": [0.1]}, "levels"),
        ({"schedule": "loss", "levels": [0.1, 0.5]}, "levels"), ({"batch_size": 0}, "batch_size"),
        ({"weight_decay": -1.0}, "weight_decay"), ({"time": 0.0}, "time"), ({"rate": -0.1}, "rate"),
        ({"gradient": 2.0}, "gradient"),
    ],
)  # fmt: skip
def test_optimisers_refuse_what_they_cannot_do(settings, named):
    with pytest.raises(ValueError, match=f"trainer.{named}"):
        Trainer(**settings)


def test_cross_entropies_refuse_other_labels():
    with pytest.raises(ValueError, match=r"\+1 and -1"):
        Trainer(loss="logistic").fit(network(), [task("mse")], [Member(0, 0)])
    with pytest.raises(ValueError, match="two outputs"):
        Trainer(loss="softmax").fit(network(), [task("logistic")], [Member(0, 0)])
