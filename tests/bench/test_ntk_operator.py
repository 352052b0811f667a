"""Products with the kernel, without the kernel; and what the methods say about themselves."""

import pytest
import torch
from ntk_networks import brute_force, inputs, networks
from torch import Tensor, nn

from bench.ntk import Method, as_operator, empirical_ntk, explain
from models.mlp import mlp

EXACT = 1e-12  # relative to the largest entry: see test_ntk.py
NETWORKS = networks()


@pytest.fixture(params=["mlp", "resnet", "token", "positions", "frozen weight", "in place", "recurrent", "weight norm"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    net, shape = NETWORKS[request.param]
    x = inputs(request.param, shape, 7)
    return net, x[:4], x[4:]


@pytest.mark.parametrize("outputs", ["full", "trace", "sum", 1])
def test_products_are_the_matrix_products(case, outputs):
    net, x1, x2 = case
    full = brute_force(net, x1, x2)
    c = full.shape[2]
    K = {
        "full": full.permute(0, 2, 1, 3).reshape(4 * c, 3 * c),
        "trace": full.diagonal(dim1=2, dim2=3).sum(-1),
        "sum": full.sum((2, 3)),
        1: full[:, :, 1, 1],
    }[outputs]
    operator = as_operator(net, x1, x2, outputs=outputs)
    assert operator.shape == K.shape
    V = torch.randn(K.shape[1], 3, dtype=torch.float64)
    scale = float(K.abs().max() * V.abs().sum(0).max())
    assert float((operator.matvec(V) - K @ V).abs().max()) < EXACT * scale
    assert float((operator @ V[:, 0] - K @ V[:, 0]).abs().max()) < EXACT * scale
    kernel = empirical_ntk(net, x1, x2, outputs=outputs, method="matrix_free")
    assert float((kernel - empirical_ntk(net, x1, x2, outputs=outputs)).abs().max()) < EXACT * float(K.abs().max())


def test_shares_and_members_by_products(case):
    net, x1, _ = case
    params = {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in net.named_parameters()}
    expected = empirical_ntk(net, x1, by_layer=True, params=params)
    shares = empirical_ntk(net, x1, by_layer=True, params=params, method="matrix_free")
    scale = max(float(share.abs().max()) for share in expected.values())
    assert shares.keys() == expected.keys()
    assert all(float((shares[name] - expected[name]).abs().max()) < EXACT * scale for name in shares)


def test_small_batches_change_nothing(case):
    net, x1, x2 = case
    operator = as_operator(net, x1, x2, memory=1)
    assert operator.chunk == 1
    v = torch.randn(operator.shape[1], dtype=torch.float64)
    torch.testing.assert_close(operator @ v, as_operator(net, x1, x2) @ v, rtol=1e-12, atol=1e-12)


def test_an_operator_is_of_one_network_and_its_vectors_fit():
    net = mlp(5, 4, 1, 2)
    params = {name: torch.stack([p.detach(), p.detach()]) for name, p in net.named_parameters()}
    with pytest.raises(ValueError, match="params must hold one member"):
        as_operator(net, torch.randn(3, 5), params=params)
    with pytest.raises(ValueError, match="v must have 6 rows"):
        as_operator(net, torch.randn(3, 5)) @ torch.randn(3)


def test_every_method_says_what_it_costs_and_when_to_use_it():
    assert {method.value for method in Method} == {"auto", "layerwise", "jacobian", "matrix_free"}
    for method in Method:
        assert method == method.value
        assert len(method.cost) > 20
        assert len(method.use) > 20


def test_auto_chooses_by_flops_and_says_why():
    x = torch.randn(50, 12)
    assert "rules hold for every parameter" in str(explain(mlp(12, 32, 2, 1), x))
    # Recurrent weights have no rule; a read-out's rule saves less than the pass that it needs of its own ...
    small = nn.Sequential(nn.Linear(12, 40), nn.utils.parametrizations.weight_norm(nn.Linear(40, 40)), nn.Linear(40, 1))
    # ... unless it is large.
    large = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 4)), nn.Linear(4, 900), nn.Linear(900, 1))
    for net in (small, large):
        plan = explain(net, x)
        flops = {method: explain(net, x, method=method).flops for method in ("layerwise", "jacobian")}
        assert plan.flops == min(flops.values())
        assert plan.method == min(flops, key=flops.get)
        assert "GFLOP by rules" in str(plan)
