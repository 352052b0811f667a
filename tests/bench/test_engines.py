"""Every engine against autograd through one network at a time, in float64: networks drawn by Hypothesis."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.batch import Batch
from bench.engines import Loop, Vmap, engine
from bench.matmul import Matmul, stages
from bench.point import Point
from bench.train import Trainer
from bench.trained import members, seed_of
from models.activations import ACTIVATIONS, Hermite, Power, RectifiedPower
from models.cnn import cnn
from models.layers import Linear
from models.mlp import mlp
from tasks.hypercube import staircase

CHOICES = [*ACTIVATIONS, Power(3), RectifiedPower(2), RectifiedPower(0), Hermite(3), nn.ReLU(inplace=True)]


def batch_of(net: nn.Module, count: int, points: int, shape: tuple[int, ...], frozen: set[str], seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    net = net.double()
    values = {name: drawn(count, *parameter.shape) for name, parameter in net.named_parameters()}
    x = drawn(count, points, *shape)
    outputs = net(x[0]).shape[1]
    y, z_0 = drawn(count, points, outputs), drawn(count, points, outputs)
    return Batch(
        net,
        {name: value for name, value in values.items() if name not in frozen},
        {name: value for name, value in values.items() if name in frozen},
        x, y, z_0, drawn(count).abs() + 0.1, tuple(range(count)),
    )  # fmt: skip


def expected(batch: Batch, signal: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """z and the gradients of ``sum(signal * z)``, by torch.func one member at a time."""

    def one(params: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, weight: Tensor) -> Tensor:
        return (functional_call(batch.net, {**params, **fixed}, (x,)) * weight).sum()

    outputs, gradients = [], []
    for i in range(len(batch.data)):
        params, fixed = ({name: value[i] for name, value in part.items()} for part in (batch.params, batch.fixed))
        outputs.append(functional_call(batch.net, {**params, **fixed}, (batch.x[i],)))
        gradients.append(grad(one)(params, fixed, batch.x[i], signal[i]))
    return torch.stack(outputs), {name: torch.stack([g[name] for g in gradients]) for name in batch.params}


def kernels(batch: Batch) -> Tensor:
    """K_t of one output, [m, n, n], from its gradient at every point of every member."""
    n = batch.x.shape[1]
    gradients = [
        expected(batch, signal)[1] for signal in torch.eye(n).double()[:, None, :, None].expand(-1, len(batch.x), n, 1)
    ]
    flat = torch.stack([torch.cat([g[name].flatten(1) for name in g], 1) for g in gradients], 1)
    return flat @ flat.mT


def agree(found, batch: Batch, seed: int = 3) -> None:
    """Outputs, gradients and kernels to rounding: each is a sum of at most some hundred products, 1e-16 of the largest
    each."""
    point = Point.of(batch.params)
    gradient = Point.of({name: torch.full_like(value, torch.nan) for name, value in batch.params.items()})
    for _ in range(2):  # the buffers of the first call serve the second
        signal = torch.randn(batch.y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z, gradients = expected(batch, signal)
        points = max(1, batch.x.shape[1] - 1)
        if (kernel := found.kernel(batch, point, points)) is not None:
            whole = kernels(batch)[:, :points, :points]
            torch.testing.assert_close(kernel, whole, rtol=1e-10, atol=1e-11 * (float(whole.abs().max()) + 1))
        assert (kernel is not None) == (isinstance(found, Matmul) and z.shape[2] == 1)
        torch.testing.assert_close(found.forward(batch, point), z, rtol=1e-10, atol=1e-12 * float(z.abs().max() + 1))
        found.backward(signal, gradient)
        for name, value in gradients.items():
            size = float(value.abs().max()) + 1
            torch.testing.assert_close(gradient.views[name], value, rtol=1e-10, atol=1e-11 * size, msg=name)
        seed += 1


@settings(max_examples=120, deadline=None)
@given(
    count=st.integers(1, 4), points=st.integers(1, 9), features=st.integers(1, 5), width=st.integers(1, 7),
    depth=st.integers(0, 3), outputs=st.integers(1, 3), activation=st.sampled_from(CHOICES),
    bias=st.sampled_from([None, 0.0, 0.7]), readout_bias=st.sampled_from([None, 0.3]),
    parameterization=st.sampled_from(["ntk", "standard"]), frozen=st.sampled_from(["nothing", "hidden", "first"]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_products_by_hand_have_autograds_gradients(
    count, points, features, width, depth, outputs, activation, bias, readout_bias, parameterization, frozen, seed
):
    net = mlp(features, width, depth, outputs, activation, parameterization, b_std=bias, readout_w_std=0.9,
              readout_b_std=readout_bias)  # fmt: skip
    names = [name for name, _ in net.named_parameters()]
    last = {name for name in names if name.startswith(f"{len(net) - 1}.")}
    held = {"nothing": set(), "hidden": set(names) - last, "first": set(names[:1]) - last}[frozen]
    batch = batch_of(net, count, points, (features,), held, seed)
    z, gradients = expected(batch, torch.ones_like(batch.y))
    assume(all(value.isfinite().all() for value in (z, *gradients.values())))  # exp of exp of exp overflows
    found = engine(batch, "auto")
    assert isinstance(found, Matmul)
    agree(found, batch)


def test_kinks_and_dead_inputs_have_autograds_derivative():
    net = mlp(3, 4, 2, 1, b_std=0.5)
    batch = batch_of(net, 2, 5, (3,), set(), 0)
    batch.x[:, 2:] = 0.0
    for name, value in batch.params.items():
        if name.endswith("bias"):
            value.zero_()  # pre-activations of exactly 0
    agree(engine(batch, "auto"), batch)


class Twice(nn.Module):
    """Not a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.5 * self.inner(-x)


def shared() -> nn.Module:
    layer = Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied(name: str, between: nn.Module) -> nn.Module:
    """Two layers that share a parameter."""
    net = nn.Sequential(Linear(3, 3, b_std=0.3), between, Linear(3, 3, b_std=0.3))
    setattr(net[2], name, getattr(net[0], name))
    return net


OTHERS = {
    "a module of one's own": (Twice, (3,)),
    "a layer used twice": (shared, (3,)),
    "a weight used twice": (lambda: tied("weight", nn.Tanh()), (3,)),
    "a bias used twice": (lambda: tied("bias", nn.Tanh()), (3,)),
    "convolutions": (lambda: cnn(2, 3, 2, 2, readout="gap"), (2, 4, 4)),
    "a norm": (lambda: nn.Sequential(Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), Linear(4, 1)), (3,)),
    "an activation first": (lambda: nn.Sequential(nn.ReLU(), Linear(3, 1)), (3,)),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_no_chain_goes_through_autograd(case, count):
    make, shape = OTHERS[case]
    batch = batch_of(make(), count, 4, shape, set(), 1)
    assert stages(batch.net, len(shape)) is None
    found = engine(batch, "auto")
    assert type(found) is (Loop if count == 1 else Vmap)
    agree(found, batch)


def test_nested_chains_images_and_hooks():
    net = nn.Sequential(nn.Flatten(1), nn.Sequential(nn.Linear(8, 5), nn.GELU()), Linear(5, 2, b_std=0.3), nn.Sigmoid())
    batch = batch_of(net, 3, 4, (2, 2, 2), set(), 2)
    found = engine(batch, "auto")
    assert isinstance(found, Matmul)
    agree(found, batch)
    net[2].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert stages(batch.net, 3) is None  # products by hand would not call it
    agree(engine(batch, "auto"), batch)


@pytest.mark.parametrize("case", [
    {}, {"weight_decay": 1e-2}, {"gradient": 1e-3}, {"optimiser": "adam", "rate": 0.01},
    {"momentum": 0.5}, {"accelerated": True, "step": 1.0}, {"loss": "logistic"}, {"centred": False},
    {"optimiser": "sgd", "batch_size": 7},
])  # fmt: skip
def test_all_methods_train_alike(case):
    """The same 25 steps but for rounding, which a step multiplies by at most some units: 1e-15 stays below 1e-9."""
    task = staircase(d=8, n_train=24, n_test=30, seed=seed_of("data", 0))
    task = task if case.get("loss") is None else type(task)(**{**vars(task), "y_train": task.y_train.sign()})
    ends = {}
    for method in ("matmul", "vmap", "loop"):
        trainer = Trainer(richness=0.5, dtype="float64", tolerance=0.0, max_steps=25, method=method, **case)
        ends[method] = trainer.fit(mlp(8, 16, 2, 1, b_std=0.4), [task], members(1, 3)).f_T
    start = float(ends["vmap"].abs().max())
    assert start > 0.01
    for method in ("matmul", "loop"):
        torch.testing.assert_close(ends[method], ends["vmap"], rtol=1e-8, atol=1e-9 * start)


def test_a_method_that_cannot_compute_a_network_is_refused():
    task = staircase(d=8, n_train=24, n_test=30, seed=seed_of("data", 0))
    net = nn.Sequential(Linear(8, 4), nn.LayerNorm(4), Linear(4, 1))
    with pytest.raises(ValueError, match=r"trainer\.method=matmul"):
        Trainer(method="matmul").fit(net, [task], members(1, 1))
    with pytest.raises(ValueError, match=r"trainer\.method must be one of auto, matmul, vmap, loop"):
        Trainer(method="fast")


def test_members_of_torch_func_agree_with_the_loop_of_the_reference():
    """The reference of this file against a second one: torch.func's vmap of grad."""
    batch = batch_of(mlp(3, 5, 2, 1, "erf"), 3, 4, (3,), set(), 5)
    signal = torch.ones_like(batch.y)
    _, gradients = expected(batch, signal)
    found = vmap(grad(lambda p, x: functional_call(batch.net, p, (x,)).sum()))(batch.params, batch.x)
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
