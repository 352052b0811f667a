"""What has no limit, or does not fit, is refused with one sentence that names the part and the remedy."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from models.layers import Linear
from models.limits import Kernels, NoInfiniteWidthLimit, elementwise, infinite_width, rule
from models.mlp import mlp


class Forward(nn.Module):
    """A network with one layer `a`, one `b`, a parameter and the given forward."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.function = Linear(3, 3), Linear(3, 3), function
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class Overriding(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


def _tied() -> nn.Module:
    net = nn.Sequential(Linear(3, 3), nn.ReLU(), Linear(3, 3))
    net[2].weight = net[0].weight
    return net


@elementwise
class Trainable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.slope * x)


class Tripled(nn.Module):
    """Has a rule that says nothing of means."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


@rule(Tripled, role="linear")
def tripled(module: Tripled, k: Kernels) -> Kernels:
    return replace(k, nngp=9 * k.nngp, ntk=9 * k.ntk)


BEFORE_INPUTS = [
    (lambda: nn.PReLU(), "No infinite-width rule for PReLU (the network itself)"),
    (lambda: nn.Sequential(Linear(3, 3), nn.Softmax(1)), "No infinite-width rule for '1' (Softmax)"),
    (lambda: nn.Sequential(Linear(3, 3), nn.RReLU(), Linear(3, 1)), "No infinite-width rule for '1' (RReLU)"),
    (
        lambda: Overriding(3, 3),
        "Parameter 'weight' of Overriding is used outside the layers that have a rule: register",
    ),
    (lambda: nn.Sequential(spectral_norm(nn.Linear(3, 3))), "No infinite-width rule for '0' (ParametrizedLinear)"),
    (
        lambda: Forward(lambda net, x: net.a(x) * net.b(x)),
        "'mul' combines different branches other than by a sum, and products of branches have no rule: write them",
    ),
    (lambda: Forward(lambda net, x: (h := torch.relu(net.a(x))) + h.clone()), "'add' adds correlated branches, so"),
    (lambda: nn.Sequential(Linear(3, 3), nn.MultiheadAttention(3, 1)), "'1' (MultiheadAttention) has no deterministic"),
    (lambda: Forward(lambda net, x: torch.cat([net.a(x), net.b(x)], 0)), "'cat': tensors may be concatenated along th"),
    (lambda: Forward(lambda net, x: torch.cat([net.a(x), net.b(x)], 1)), "The network returns a concatenation: end it"),
    (lambda: Forward(lambda net, x: net.b(net.a(x)[:, :2])), "No infinite-width rule for the call of 'getitem'"),
    (lambda: Forward(lambda net, x: functional.softmax(net.a(x), 1)), "No infinite-width rule for the call of 'softm"),
    (lambda: Forward(lambda net, x: net.a(x).unfold(1, 2, 1)), "No infinite-width rule for the call of 'unfold'"),
    (lambda: Forward(lambda net, x: net.scale * net.a(x)), "Parameter 'scale' of Forward is used outside the layers"),
    (lambda: Forward(lambda net, x: net.a(net.a(x))), "'a' (Linear) shares its weights with 'a' (Linear): the limit"),
    (_tied, "'2' (Linear) shares its weights with '0' (Linear): the limit needs weights of its own for each call."),
    (lambda: Forward(lambda net, x: (net.a(x), net.b(x))), "The network returns several values: it must return one"),
    (lambda: Forward(lambda net, x: net.a(x) if x.sum() > 0 else net.b(x)), "Forward cannot be traced (symbolically"),
    (lambda: Forward(lambda net, x: nn.ReLU()(net.a(x))), "Forward cannot be traced (module is not installed"),
    (lambda: TwoInputs(), "TwoInputs cannot be traced (TwoInputs.forward() missing 1 required positional argument"),
    (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), "The network has no layer with random weights, so it has no inf"),
    (
        lambda: Forward(lambda net, x: (torch.relu_(h := net.a(x)), net.b(h))[1]),
        "The result of 'relu_' is not used: drop the call, or use what it returns",
    ),
]


def _refusal(call) -> str:
    with pytest.raises(NoInfiniteWidthLimit) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("make", "sentence"), BEFORE_INPUTS)
def test_refused_before_any_input(make, sentence) -> None:
    assert _refusal(lambda: infinite_width(make())).startswith(sentence)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: nn.Sequential(nn.Dropout(0.5), Linear(3, 3), nn.Dropout(0.5), nn.ReLU(), Linear(3, 1)),
            "'3' (ReLU): an activation must follow a layer with random weights, whose outputs are Gaussian: put",
        ),
        (
            lambda: nn.Sequential(Linear(3, 3), nn.ReLU(), nn.LayerNorm(3), nn.Tanh(), Linear(3, 1)),
            "'3' (Tanh): an activation must follow a layer with random weights, whose outputs are Gaussian",
        ),
        (
            lambda: nn.Sequential(Linear(3, 3), nn.ReLU(), Tripled(), nn.LayerNorm(3), Linear(3, 1)),
            "'3' (LayerNorm): normalisation needs the mean of its input, which the rule of a layer before it does not",
        ),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3), Linear(3, 3)),
            "'0' (BatchNorm1d): batch normalisation in training mode couples the inputs of a batch",
        ),
        (lambda: nn.Sequential(Linear(3, 3), nn.Flatten(0)), "'1' (Flatten): flattening must start at axis 1"),
        (lambda: mlp(4, 5, 1, 1), "'1' (Linear): takes 4 features, but its input has 3."),
        (
            lambda: nn.Sequential(Linear(3, 5), nn.ReLU(), Linear(4, 1)),
            "'2' (Linear): takes 4 features, but its input has 5.",
        ),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (3, 1, 1, 1)), Linear(1, 1)),
            "'1' (Linear) gets inputs of shape [1, 3, 1, 1, 1], but its limit is for [samples, features], or [samples,",
        ),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), Linear(1, 1)),
            "The network returns 3 positions for each input: end it in torch.nn.Flatten and a linear layer, or in a",
        ),
        (
            lambda: nn.Sequential(Linear(3, 3), Trainable(), Linear(3, 1)),
            "'1' (Trainable): an elementwise activation must have no parameters.",
        ),
    ],
)
def test_refused_with_inputs(make, sentence) -> None:
    limit = infinite_width(make())
    assert _refusal(lambda: limit(torch.randn(2, 3))).startswith(sentence)


def test_refusal_is_a_value_error() -> None:
    assert issubclass(NoInfiniteWidthLimit, ValueError)


@pytest.mark.parametrize(
    ("x1", "x2", "memory", "sentence"),
    [
        (torch.randn(3), None, None, "x1 must be a float tensor [n, ...] with n >= 1, not torch.float32 [3]."),
        (torch.ones(2, 3).long(), None, None, "x1 must be a float tensor [n, ...] with n >= 1, not torch.int64"),
        (torch.randn(0, 3), None, None, "x1 must be a float tensor"),
        (torch.full((2, 3), torch.nan), None, None, "x1 must be finite, but holds NaN or infinity."),
        (torch.full((2, 3), 1e30), None, None, "x1 is so large that its squares overflow in torch.float32: scale it"),
        (
            torch.randn(2, 3),
            torch.randn(2, 3).double(),
            None,
            "x2 must have the sample shape, dtype and device of x1, [3] torch.float32 on cpu, not [3] torch.float64",
        ),
        (torch.randn(2, 3), torch.randn(2, 4), None, "x2 must have the sample shape, dtype and device of x1"),
        (torch.randn(2, 3), None, -1, "memory must be a positive number of bytes"),
    ],
)
def test_bad_inputs(x1, x2, memory, sentence) -> None:
    limit = infinite_width(mlp(3, 4, 1, 1))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        limit(x1, x2, memory)
    assert str(caught.value).startswith(sentence)


def test_dropout_counts_as_it_is_set_when_called() -> None:
    net = nn.Sequential(nn.Dropout(0.5), Linear(3, 1)).eval()
    limit, x = infinite_width(net), torch.randn(2, 3)
    before = limit(x).nngp
    net.train()
    after = limit(x).nngp
    torch.testing.assert_close(after.diagonal(), 2 * before.diagonal())
    assert after[0, 1] == before[0, 1]
