"""The empirical NTK against a plain Jacobian, one autograd call a sample and output, in float64."""

import pytest
import torch
from torch import Tensor, nn

from bench.ntk import empirical_ntk
from models.cnn import cnn
from models.mlp import mlp


def brute_force(net: nn.Module, x1: Tensor, x2: Tensor) -> Tensor:
    """[n1, n2, c, c]."""
    parameters = [p for p in net.parameters() if p.requires_grad]

    def rows(x: Tensor) -> Tensor:
        outputs = net(x)
        return torch.stack(
            [
                torch.stack(
                    [
                        torch.cat([g.flatten() for g in torch.autograd.grad(output, parameters, retain_graph=True)])
                        for output in sample
                    ]
                )
                for sample in outputs
            ]
        )

    return torch.einsum("ikp,jlp->ijkl", rows(x1), rows(x2))


class Unusual(nn.Module):
    """A weight used outside its layer's call, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(h @ self.first.weight @ self.first.weight.T))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    frozen = mlp(5, 8, 2, 3, activation="tanh", b_std=0.3)
    frozen[0].requires_grad_(False)
    return {
        "mlp": (mlp(5, 8, 2, 3, activation="tanh", b_std=0.3, readout_b_std=0.1), (5,)),
        "standard": (mlp(5, 8, 1, 2, activation="erf", parameterization="standard", b_std=0.3), (5,)),
        "torch": (nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2)), (5,)),
        "layer norm": (nn.Sequential(nn.Linear(5, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 2)), (5,)),
        "frozen": (frozen, (5,)),
        "cnn flatten": (cnn(2, 4, 2, 3, "tanh", "flatten", 4, b_std=0.2), (2, 4, 4)),
        "cnn gap": (cnn(2, 4, 2, 1, "tanh", "gap", b_std=0.2), (2, 4, 4)),
        "unusual": (Unusual(), (5,)),
    }


@pytest.fixture(params=list(networks()))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    net, shape = networks()[request.param]
    x = torch.randn(9, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return net.double(), x[:5], x[5:]


def test_every_entry_is_the_brute_force_one(case):
    net, x1, x2 = case
    for one, two in ((x1, x2), (x1, None)):
        expected = brute_force(net, one, one if two is None else two)
        error = (empirical_ntk(net, one, two) - expected).abs().max() / expected.abs().max()
        assert error < 1e-13  # some 100 roundings of float64


def test_other_outputs_follow_from_the_full_kernel(case):
    net, x1, x2 = case
    full = brute_force(net, x1, x2)
    expected = {"trace": full.diagonal(dim1=2, dim2=3).sum(-1), "sum": full.sum((2, 3)), 0: full[:, :, 0, 0]}
    for outputs, kernel in expected.items():
        torch.testing.assert_close(empirical_ntk(net, x1, x2, outputs=outputs), kernel, rtol=1e-11, atol=1e-11)


def test_shares_of_the_layers_sum_to_the_kernel_and_none_is_idle(case):
    net, x1, x2 = case
    shares = empirical_ntk(net, x1, x2, by_layer=True)
    total = empirical_ntk(net, x1, x2)
    torch.testing.assert_close(sum(shares.values()), total, rtol=1e-12, atol=1e-12)
    for name, share in shares.items():  # the control: a kernel without one layer's share is seen to be wrong
        assert share.abs().max() > 1e-6 * total.abs().max(), name


def test_members_are_separate_networks(case):
    net, x1, x2 = case
    params = {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in net.named_parameters()}
    kernels = empirical_ntk(net, x1, x2, params=params)
    torch.testing.assert_close(kernels[0], empirical_ntk(net, x1, x2), rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)
    torch.testing.assert_close(kernels[1], empirical_ntk(net, x1, x2), rtol=1e-11, atol=1e-11)


def test_both_methods_agree_on_a_chain_of_linear_layers():
    net, _ = networks()["mlp"]
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layerwise = empirical_ntk(net, x, method="layerwise", dtype=torch.float64)
    torch.testing.assert_close(empirical_ntk(net, x, method="jacobian", dtype=torch.float64), layerwise)


def test_a_method_that_does_not_apply_is_refused():
    net, shape = networks()["cnn gap"]
    with pytest.raises(ValueError, match="layerwise"):
        empirical_ntk(net, torch.randn(2, *shape), method="layerwise")
