"""The empirical NTK of networks that no layer's rule was written for, of odd inputs, and of what must be refused.

Against a plain Jacobian in float64, as in ``test_ntk.py``: errors are relative to the largest entry, some 1e3 products
of a few roundings of 1e-16 each.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ntk_networks import brute_force, inputs
from ntk_odd_networks import odd_networks
from torch import Tensor, nn
from torch.nn import functional as F

from bench.ntk import as_operator, empirical_ntk, write_ntk
from bench.ntk.algebra import as_matrix, conjugate_gradients, largest_eigenvalues, solve, spectrum
from models.mlp import mlp

EXACT = 1e-12
NETWORKS = odd_networks()
CHECKPOINTED = NETWORKS.pop("checkpointed")


def error(kernel: Tensor, expected: Tensor) -> float:
    assert kernel.shape == expected.shape
    return float((kernel - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_way_to_the_kernel_is_the_brute_force_one(name):
    net, shape = NETWORKS[name]
    x = inputs(name, shape, 8)
    x1, x2 = x[:5], x[5:]
    expected = brute_force(net, x1, x2)
    for method in ("auto", "layerwise", "jacobian"):
        assert error(empirical_ntk(net, x1, x2, method=method), expected) < EXACT
    assert error(empirical_ntk(net, x1, x2, memory=2**23, method="layerwise"), expected) < EXACT
    shares = empirical_ntk(net, x1, x2, by_layer=True, method="layerwise")
    assert error(sum(shares.values()), expected) < EXACT
    params = {n: torch.stack([0.5 * p.detach(), p.detach()]) for n, p in net.named_parameters()}
    assert error(empirical_ntk(net, x1, x2, params=params, method="layerwise")[1], expected) < EXACT
    members = empirical_ntk(net, x1, x2, params=params, by_layer=True)
    assert error(sum(share[1] for share in members.values()), expected) < EXACT
    matrix = as_matrix(expected)
    v = torch.randn(matrix.shape[1], dtype=torch.float64)
    assert float((as_operator(net, x1, x2) @ v - matrix @ v).abs().max()) < EXACT * float(
        matrix.abs().max() * v.abs().sum()
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_parameters_may_be_frozen(data):
    name = data.draw(st.sampled_from(["token causal", "twice", "functional", "mixed", "attention of torch"]))
    net, shape = copy.deepcopy(NETWORKS[name])
    names = [n for n, _ in net.named_parameters()]
    trained = data.draw(st.sets(st.sampled_from(names), min_size=1))
    for n in names:
        net.get_parameter(n).requires_grad_(n in trained)
    x = inputs(name, shape, data.draw(st.integers(1, 6)), seed=data.draw(st.integers(0, 9)))
    expected = brute_force(net, x, x)
    kernel = empirical_ntk(net, x, method=data.draw(st.sampled_from(["auto", "layerwise", "jacobian"])))
    assert float((kernel - expected).abs().max()) <= EXACT * float(expected.abs().max())


def test_inputs_of_any_layout_and_number():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)).double()
    plain = torch.randn(9, 2, 5, 5, dtype=torch.float64)
    layouts = {
        "channels last": plain.to(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "every other": torch.stack([plain, -plain], 1).flatten(0, 1)[::2],
        "from numpy": torch.from_numpy(plain.numpy()[::-1].copy()).flip(0),
    }
    expected = brute_force(net, plain, plain)
    for name, x in layouts.items():
        assert torch.equal(x, plain), name
        assert error(empirical_ntk(net, x), expected) < EXACT, name
    one = plain[:1].expand(6, 2, 5, 5)
    assert error(empirical_ntk(net, one), brute_force(net, one, one)) < EXACT
    for n in (1, 2, 3, 4, 5, 7):  # the plan's probe has 3, 5 or 7
        for n2 in (1, 3, 5):
            assert error(empirical_ntk(net, plain[:n], plain[-n2:]), expected[:n, -n2:]) < EXACT
    with torch.inference_mode():
        assert error(empirical_ntk(net, plain.clone()), expected) < EXACT
        products = as_operator(net, plain.clone()) @ torch.eye(18, dtype=torch.float64)
        assert error(products, as_matrix(expected)) < EXACT


def test_a_sample_of_nan_spoils_its_own_row_and_column_only():
    torch.manual_seed(0)
    net, x = mlp(5, 16, 2, 2).double(), torch.randn(7, 5, dtype=torch.float64)
    expected = empirical_ntk(net, x)
    x[3, 2] = torch.nan
    kernel = empirical_ntk(net, x)
    sound = [0, 1, 2, 4, 5, 6]
    assert kernel[3].isnan().any(dim=-1).any(dim=-1).all()
    assert error(kernel[sound][:, sound], expected[sound][:, sound]) < EXACT
    y = torch.ones(14, 1, dtype=torch.float64)
    for call in (
        lambda: solve(kernel, y),
        lambda: solve(kernel, y, ridge=1.0),
        lambda: spectrum(kernel),
        lambda: conjugate_gradients(kernel, y, ridge=1.0),
        lambda: largest_eigenvalues(kernel, 3),
    ):
        with pytest.raises(ValueError, match="nan"):
            call()


def test_the_operator_of_an_odd_network_is_solved_and_has_a_spectrum():
    net, shape = NETWORKS["token causal"]
    x = inputs("token causal", shape, 6)
    matrix, operator = as_matrix(brute_force(net, x, x)), as_operator(net, x)
    y = torch.randn(len(matrix), 2, dtype=torch.float64)
    ridge = 0.1 * float(matrix.diagonal().mean())
    found = conjugate_gradients(operator, y, ridge, tolerance=1e-10)
    right = np.linalg.solve(matrix.numpy() + ridge * np.eye(len(matrix)), y.numpy())
    # |x - x'| <= |r| / ridge
    assert np.linalg.norm(found.x.numpy() - right, axis=0).max() < 2e-10 * float(y.norm(dim=0).max()) / ridge
    top = largest_eigenvalues(operator, 3)
    np.testing.assert_allclose(top.eigenvalues.numpy(), np.linalg.eigvalsh(matrix.numpy())[-3:], rtol=1e-7)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x, 0.5))


def test_what_has_no_kernel_is_refused(tmp_path):
    x = torch.randn(4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^net draws random numbers when it is called: call net.eval\(\).$"):
        empirical_ntk(Noisy(), x)
    attention = nn.Sequential(nn.Linear(5, 6), nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True))
    attention[1].self_attn.dropout = 0.3
    with pytest.raises(ValueError, match="net draws random numbers"):
        empirical_ntk(nn.Sequential(nn.Unflatten(1, (1, 5)), attention, nn.Flatten()), x)
    with pytest.raises(ValueError, match=r"^net and x1 must be real"):
        empirical_ntk(nn.Linear(5, 2, dtype=torch.complex64), x)
    net, _ = CHECKPOINTED
    for call in (
        lambda: empirical_ntk(net, x),
        lambda: empirical_ntk(net, x, method="jacobian"),
        lambda: as_operator(net, x) @ torch.ones(12),
        lambda: write_ntk(tmp_path / "k.npy", net, x),
    ):
        with pytest.raises(ValueError, match=r"^net recomputes activations \(torch.utils.checkpoint\)"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [64, 1024])
def test_a_mask_that_flips_moves_the_kernel_by_one_over_the_width(width):
    """Which is what float32 costs where a pre-activation is zero to rounding: of one unit of ``width``, with read-out
    weight a, the share 2 a^2 |x|^2 / (d width) of K(x, x), some 2 |x|^2 / d, comes or goes."""
    torch.manual_seed(0)
    d = 20
    net = mlp(d, width, 1, 1, w_std=2**0.5).double()
    first, read = (p.detach() for n, p in net.named_parameters() if n.endswith("weight"))
    x = torch.randn(1, d, dtype=torch.float64)
    unit = first[0] / first[0].norm()
    x = x - (x @ unit) * unit
    on, off = (float(empirical_ntk(net, x + side * unit)) for side in (1e-9, -1e-9))
    share = 2 * float(read[0, 0]) ** 2 * float(x.square().sum()) / (d * width)
    assert on - off == pytest.approx(share, rel=1e-6)
    assert 0 < (on - off) / on < 10 / width  # a^2 is below 10 in all but 2 of 1,000 draws


@pytest.mark.parametrize("method", ["auto", "jacobian", "matrix_free"])
def test_inputs_of_a_wrong_shape_are_one_sentence(method):
    for net, shape in (
        (nn.Linear(5, 1), r"\[n, 8\]"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 1)), r"\[n, 8\]"),
    ):
        with pytest.raises(ValueError, match=f"net does not take inputs {shape}") as caught:
            empirical_ntk(net, torch.randn(4, 8), method=method)
        assert "\n" not in str(caught.value)
