"""The device of the inputs is the device of everything, and nothing is read back to the host.

Without a GPU the meta device shows it: a tensor there has no values to read, and a dispatch mode sees any operation
that mixes devices (plain meta lets some through).
"""

import pytest
import torch
from ntk_networks import inputs, networks

from bench.ntk import as_operator, empirical_ntk
from tests.one_device import OneDevice

NETWORKS = {name: pair for name, pair in networks().items() if name != "recurrent"}  # LSTM has no meta kernel for vmap


@pytest.mark.parametrize("name", list(NETWORKS))
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
