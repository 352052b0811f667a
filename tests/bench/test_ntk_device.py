"""The device of the inputs is the device of everything, and nothing is read back to the host.

Without a GPU the meta device shows it: a tensor there has no values to read, and a dispatch mode sees any operation
that mixes devices (plain meta lets some through).
"""

import pytest
import torch
from ntk_networks import inputs, networks
from ntk_odd_networks import odd_networks
from torch import nn

from bench.ntk import as_operator, empirical_ntk, write_ntk
from bench.ntk.precision import BACKENDS
from tests.one_device import OneDevice

pytestmark = pytest.mark.slow

# An LSTM has no meta kernel for vmap, and recomputed activations are refused.
NETWORKS = {n: pair for n, pair in {**networks(), **odd_networks()}.items() if n not in ("recurrent", "checkpointed")}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_of_it_runs_on_the_inputs_device(name):
    net, shape = NETWORKS[name]
    x = inputs(name, shape, 9).to("meta")
    params = {n: torch.stack([p.detach(), p.detach()]).to("meta") for n, p in net.named_parameters()}
    c = net(inputs(name, shape, 2)).shape[1]
    with OneDevice():
        # The network itself stays on the CPU: its parameters are handed in, its buffers are moved.
        for x2, n2 in ((None, 9), (x[:4], 4)):
            for method in ("layerwise", "jacobian"):
                kernel = empirical_ntk(net, x, x2, params=params, method=method)
                assert kernel.device.type == "meta"
                assert kernel.shape == (2, 9, n2, c, c)
            kernel = empirical_ntk(net, x, x2, outputs="trace", memory=2**22, params=params)
            assert kernel.shape == (2, 9, n2)
        single = {name: value[:1] for name, value in params.items()}
        operator = as_operator(net, x, outputs="sum", params=single)
        assert (operator @ torch.ones(9, dtype=torch.float64, device="meta")).device.type == "meta"


class Seen(nn.Module):
    """Notes the precision of float32 while it runs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.found: set[str] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.found |= {backend.fp32_precision for backend in BACKENDS}
        return self.layer(x)


@pytest.fixture(params=["tf32", "ieee"])
def asked(request):
    before = [backend.fp32_precision for backend in BACKENDS]
    for backend in BACKENDS:
        backend.fp32_precision = request.param
    yield request.param
    for backend, precision in zip(BACKENDS, before, strict=True):
        backend.fp32_precision = precision


def test_float32_is_never_tensor_float_32(tmp_path, asked):
    seen = Seen(nn.Conv2d(2, 3, 3))
    net = nn.Sequential(seen, nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    x = torch.randn(3, 2, 5, 5)
    operator = as_operator(net, x)
    ways = {
        "layerwise": lambda: empirical_ntk(net, x, method="layerwise"),
        "jacobian": lambda: empirical_ntk(net, x, method="jacobian"),
        "file": lambda: write_ntk(tmp_path / "k.npy", net, x),
        "operator": lambda: operator.matvec(torch.ones(6)),
    }
    for name, way in ways.items():
        seen.found.clear()
        way()
        assert seen.found == {"ieee"}, name
        assert [backend.fp32_precision for backend in BACKENDS] == [asked] * 3


@pytest.mark.gpu
def test_float32_on_a_gpu_has_float32s_precision():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.GELU(), nn.Conv2d(64, 64, 3), nn.GELU(), nn.Flatten(), nn.Linear(9216, 3)
    )
    x = torch.randn(20, 3, 16, 16)
    expected = empirical_ntk(net, x, dtype=torch.float64)
    kernel = empirical_ntk(net.cuda(), x.cuda()).cpu().double()
    assert float((kernel - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.gpu
def test_on_a_gpu_the_kernel_is_the_cpus():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for name, (net, shape) in NETWORKS.items():
        x = inputs(name, shape, 9)
        expected = empirical_ntk(net, x)
        params = {n: p.detach()[None].cuda() for n, p in net.named_parameters()}
        kernel = empirical_ntk(net, x.cuda(), params=params)[0].cpu()
        assert float((kernel - expected).abs().max()) < 1e-12 * float(expected.abs().max()), name
