"""The same on CUDA as on the CPU: training, kernels, scores. Run by ``pytest -m gpu`` where there is a GPU."""

import pytest
import torch

from bench.compare import Empirical, InfiniteWidth, Linearised, Motion, Networks, Rivals
from bench.train import Trainer
from bench.trained import members, seed_of
from models.cnn import cnn
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_cell_on_cuda_is_the_cell_on_the_cpu(kind):
    if kind == "mlp":
        tasks = [staircase(d=8, n_train=24, n_test=40, seed=seed_of("data", i)) for i in range(2)]
        net, settings = mlp(8, 64, 1, 1, b_std=0.4, readout_b_std=0.3), {"richness": 1.0}
    else:
        x, y = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)).split([24, 16])
        tasks = [Task("images", x, x.mean((2, 3)).sign(), y, y.mean((2, 3)).sign())]
        net, settings = cnn(1, 16, 1, 1, readout="flatten", image_size=6), {"richness": 1.0, "tolerance": 1e-2}
    # In float64 the two differ by rounding that training amplifies: 1e-16 times some 1e3 steps of a stable descent.
    cpu, cuda = (
        Trainer(**settings, dtype="float64", device=device).fit(net, tasks, members(len(tasks), 2))
        for device in ("cpu", "cuda")
    )
    assert cuda.f_T.is_cuda
    torch.testing.assert_close(cuda.f_T.cpu(), cpu.f_T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cuda.ntk[0, -1].cpu(), cpu.ntk[0, -1], rtol=1e-6, atol=1e-6)
    comparisons = [Networks(), Empirical("after"), Empirical("initial"), Rivals(), Motion(), Linearised()]
    for comparison in [*comparisons, InfiniteWidth()]:
        for one, other in zip(comparison(cpu), comparison(cuda), strict=True):
            assert other.value == pytest.approx(one.value, rel=1e-3, abs=1e-3, nan_ok=True), one.name
