"""Long kernels: progress, memory and blocks on disk."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from models import blocks
from models.cnn import cnn
from models.limits import compiled, infinite_width
from models.limits import walk as walk_module
from models.mlp import mlp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_a_killed_kernel_goes_on(engine, tmp_path, monkeypatch) -> None:
    x = torch.randn(40, 2, 4, 4, dtype=torch.float64)
    limit = infinite_width(cnn(2, 4, 2, 1, "relu", "gap", b_std=0.3))
    expected = limit(x, engine=engine)
    file = tmp_path / "kernel.npy"
    calls = 0

    def stopping(self, rows, cols):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, rows, cols)

    owner = walk_module.Walk if engine == "torch" else compiled.Compiled
    original = owner.tile
    memory = {"torch": 400_000, "compiled": 15_000}[engine]  # some tiles
    with monkeypatch.context() as patch:
        patch.setattr(owner, "tile", stopping)
        with pytest.raises(KeyboardInterrupt):
            limit(x, memory=memory, engine=engine, file=file)
    resumed = 0

    def counting(self, rows, cols):
        nonlocal resumed
        resumed += 1
        return original(self, rows, cols)

    monkeypatch.setattr(owner, "tile", counting)
    found = limit(x, memory=memory, engine=engine, file=file)
    finished = resumed
    again = limit(x, memory=memory, engine=engine, file=file)
    for one, two, three in zip(found[:2], expected[:2], again[:2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
        assert torch.equal(one, three)
    assert resumed - finished <= 2  # the probes of what fits, but no tile
    with pytest.raises(ValueError, match="holds something else"):
        limit(2 * x, memory=memory, engine=engine, file=file)


def test_progress_is_logged(caplog, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "models.blocks"):
        infinite_width(mlp(3, 4, 1, 1))(torch.randn(600, 3), engine="torch")
    lines = [record.message for record in caplog.records]
    assert len(lines) > 2
    assert all(line.startswith("Infinite-width kernels: ") and "of 180300 pairs, about" in line for line in lines)
    shares = [int(line.split()[2]) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] < 100


@pytest.mark.slow
def test_memory_stays_within_the_budget() -> None:
    # One pair of 16 x 16 images is .25 MB a tensor; the kernels of 24 images with themselves alone are 6 MB each.
    script = textwrap.dedent(
        """
        import resource, torch
        from torch import nn
        from models.layers import Conv2d, Linear
        from models.limits import infinite_width
        torch.manual_seed(0)
        torch.set_num_threads(1)
        net = nn.Sequential(Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), Conv2d(4, 4, 3), nn.ReLU(),
                            nn.Flatten(), Linear(4 * 36, 1))
        limit = infinite_width(net)
        limit(torch.randn(2, 1, 16, 16), engine="torch")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit(torch.randn(24, 1, 16, 16), engine="torch", memory=32 * 2**20)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 48  # MB: the budget, and what the allocator keeps
