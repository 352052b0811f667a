"""Long kernels: progress, memory and blocks on disk."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import blocks
from models.attention import SelfAttention
from models.cnn import cnn
from models.layers import Linear
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


class Mixed(nn.Module):
    """Settings that do not show in the module's name: a deviation, a buffer, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.share = nn.Linear(3, 4), Linear(4, 1), 0.5
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.scale * self.first(x)))


@pytest.mark.parametrize("change", ["deviation", "buffer", "frozen", "setting"])
def test_a_file_of_other_settings_is_refused(change, tmp_path) -> None:
    x, file, net = torch.randn(4, 3), tmp_path / "kernel.npy", Mixed()
    before = infinite_width(net)(x, file=file).ntk.clone()
    torch.testing.assert_close(infinite_width(net)(x, file=file).ntk, before, rtol=0, atol=0)
    if change == "deviation":
        net.first.w_std = 1.5
    elif change == "buffer":
        net.scale.fill_(3.0)
    elif change == "frozen":
        net.first.weight.requires_grad_(False)
    else:
        net.share = 0.7
    with pytest.raises(ValueError, match="holds something else"):
        infinite_width(net)(x, file=file)


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


BUDGET = 48  # MB
FREED = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}
"""Environment in which what is freed leaves the resident set at once: else it is the allocator that is measured."""
CASES = {
    # One pair of 16 x 16 images is .5 MB a tensor; the kernels of 24 images with themselves alone are 12 MB each.
    "pooling": """nn.Sequential(Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), Conv2d(4, 4, 3), nn.ReLU(),
                  nn.Flatten(), Linear(4 * 36, 1)), torch.randn(24, 1, 16, 16)""",
    # Weights of 8 x 8 patches: 32 kB for each image and layer, which do not fit a quarter of the budget.
    "attention": """nn.Sequential(Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(2), Turned(), SelfAttention(8, 2),
                    nn.ReLU(), SelfAttention(8, 2), nn.ReLU(), Turned(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                    Linear(8, 1)), torch.randn(200, 1, 8, 8)""",
    # At unequal norms every pair has some ten thousand nodes of its own.
    "nested": """nn.Sequential(Linear(5, 4), nn.Hardswish(), Linear(4, 1)),
                 torch.randn(40, 5) * torch.linspace(0.3, 3, 40)[:, None]""",
    "tanh": """nn.Sequential(Linear(5, 4), nn.Tanh(), Linear(4, 4), nn.Tanh(), Linear(4, 1)),
               torch.randn(1000, 5) * torch.linspace(0.3, 3, 1000)[:, None]""",
}
SCRIPT = """
import ctypes
import torch
from pathlib import Path
from torch import nn
from models.attention import SelfAttention
from models.layers import Conv2d, Linear
from models.limits import infinite_width

class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

torch.manual_seed(0)
torch.set_num_threads(1)
net, x = ({case})
limit, x = infinite_width(net.double()), x.double()
limit(x[:2], engine="torch")
ctypes.CDLL(None).malloc_trim(0)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
found = limit(x, engine="torch", memory={budget} * 2**20)
print(memory("VmHWM") - before - 2 * found.ntk.nbytes / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks as Linux has them")
@pytest.mark.parametrize("case", CASES)
def test_memory_stays_within_the_budget(case) -> None:
    script = SCRIPT.format(case=CASES[case], budget=BUDGET)
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **FREED},
    )
    assert float(result.stdout) < BUDGET


def test_weights_of_attention_that_do_not_fit_are_made_again(monkeypatch) -> None:
    net = nn.Sequential(SelfAttention(8, 2), nn.ReLU(), nn.Flatten(), Linear(48, 1)).double()
    x, y = (torch.randn(n, 6, 8, dtype=torch.float64) for n in (7, 5))
    limit, made = infinite_width(net), []
    kept = limit(x), limit(x, y)
    original = walk_module.own_kernels

    def counting(*args):
        made.append(len(args[2]))
        return original(*args)

    monkeypatch.setattr(walk_module, "own_kernels", counting)
    room = 4 * 6 * 6 * 8 * 12 - 8  # a quarter is a number less than the weights of 12 inputs
    for whole, found in zip(kept, (limit(x, memory=room), limit(x, y, memory=room)), strict=True):
        for one, two in zip(found[:2], whole[:2], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
    assert 12 in made  # of all inputs of the second call, to find what does not fit
    assert made.count(12) == 1
    assert max(n for n in made if n not in (7, 12)) < 7
