"""The budget is kept, running out of memory is survived, and a kernel on disk is resumed."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from live_bytes import LiveBytes
from ntk_networks import OwnAttention, resnet
from torch import Tensor, nn

from bench.ntk import empirical_ntk, explain, passes, tiles, write_ntk
from models.cnn import cnn
from models.mlp import mlp


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "mlp": (mlp(64, 128, 3, 1), torch.randn(300, 64)),
        "mlp of ten outputs": (mlp(64, 128, 2, 10), torch.randn(100, 64)),
        "cnn": (cnn(3, 32, 3, 1, readout="gap"), torch.randn(24, 3, 12, 12)),
        "cnn of ten outputs": (cnn(3, 32, 2, 10, readout="gap"), torch.randn(12, 3, 8, 8)),
        "resnet": (resnet().float(), torch.randn(12, 3, 12, 12)),
        "attention": (OwnAttention(), torch.randn(60, 16, 6)),
        "embedding": (
            nn.Sequential(nn.Embedding(100, 16), nn.Flatten(), nn.Linear(128, 2)),
            torch.randint(100, (60, 8)),
        ),
        "by sample": (
            nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 18 * 18, 3)),
            torch.randn(30, 3, 16, 16),
        ),
    }


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("name", ["mlp", "cnn of ten outputs", "by sample"])
def test_a_call_leaves_no_tensor_behind(name, members):
    """A sweep asks for thousands of kernels, in one process: what one of them leaves fills the memory."""
    net, x = networks()[name]
    params = members and {key: torch.stack([value.detach()] * members) for key, value in net.named_parameters()}
    x = x[:8].clone()
    before = tensors_alive()
    for _ in range(2):
        empirical_ntk(net, x, x[:4], params=params)
    assert tensors_alive() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", list(networks()))
def test_the_peak_stays_within_the_budget_and_the_kernel_the_same(name):
    net, x = networks()[name]
    expected = empirical_ntk(net, x)
    smallest = None
    for memory in (2**25, 2**23, 2**21, 2**19):
        with LiveBytes() as bytes_:
            try:
                kernel = empirical_ntk(net, x, memory=memory)
            except ValueError as error:
                smallest = int(str(error).split()[5])
                break
        assert bytes_.peak - expected.nbytes <= memory
        # Tiles of another size round in another order: 1e3 terms of 6e-8.
        assert float((kernel - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    if smallest is not None:  # the error tells the truth
        assert smallest > memory
        with LiveBytes() as bytes_:
            kernel = empirical_ntk(net, x, memory=smallest + 1)
        assert bytes_.peak - expected.nbytes <= smallest + 1
        assert float((kernel - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["mlp of ten outputs", "cnn", "resnet", "attention", "by sample"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_layers_one_after_another_are_the_kernel(name, by_layer, monkeypatch):
    net, x = networks()[name]
    x2 = x[: len(x) // 2]
    params = {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in net.named_parameters()}
    calls = [(x, None), (x, x2)]
    expected = [empirical_ntk(net, *sides, by_layer=by_layer, params=params, method="layerwise") for sides in calls]
    monkeypatch.setattr(passes, "SMALL", 0)
    monkeypatch.setattr(passes, "EXTRA", 1e9)
    monkeypatch.setattr(tiles.Kernel, "_small", lambda self: False)
    seen = []
    original = tiles.layers
    monkeypatch.setattr(
        tiles, "layers", lambda r, plan, *rest: seen.append(len(plan.parts)) or original(r, plan, *rest)
    )
    for sides, kernel in zip(calls, expected, strict=True):
        found = empirical_ntk(net, *sides, by_layer=by_layer, params=params, method="layerwise")
        shares = [(found, kernel)] if not by_layer else [(found[module], kernel[module]) for module in kernel]
        scale = max(float(share.abs().max()) for _, share in shares)
        for share, right in shares:
            assert float((share - right).abs().max()) < 1e-5 * scale  # 1e3 terms of 6e-8 in another order
    assert max(seen) < len(explain(net, x, method="layerwise").parts)


def test_half_of_the_gradients_are_kept_at_a_time():
    """Two layers of much the same size, one after the other: half of it, and a quarter of the budget for a pass."""
    net, x = cnn(3, 40, 3, 10, readout="gap"), torch.randn(64, 3, 6, 6)
    parameters = sum(p.numel() for p in net.parameters())
    kept = 4 * 64 * 10 * parameters
    with LiveBytes() as bytes_:
        empirical_ntk(net, x, memory=2**25)
    kernel = 4 * (64 * 10) ** 2
    assert bytes_.peak - kernel < 0.8 * kept


def test_a_kernel_whose_layers_do_not_fit_passes_few_samples_twice():
    """With half of what is kept, and half of that for layers: strips of an eighth of the samples, so that each passes
    (8 + 1) / 2 times. Square tiles took 9.5."""
    net, x = mlp(64, 128, 2, 10), torch.randn(400, 64)
    kept = 4 * 400 * (10 * (128 + 128 + 10) + 64 + 128 + 128)
    seen = []
    original = tiles.layers

    def counted(request, plan, members, x, into=None):
        seen.append(len(x))
        return original(request, plan, members, x, into)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "layers", counted)
        patch.setattr(tiles, "passes", lambda *rest: None)
        empirical_ntk(net, x, memory=kept // 2)
    assert sum(seen) <= 4.5 * 400


def test_a_kernel_that_does_not_fit_is_refused_with_the_remedy(monkeypatch):
    net, x = networks()["mlp"]
    monkeypatch.setattr(tiles.blocks, "free_memory", lambda device: 300 * 300 * 4 - 1)
    with pytest.raises(ValueError, match="write it to disk with write_ntk"):
        empirical_ntk(net, x)
    monkeypatch.setattr(tiles.blocks, "free_memory", lambda device: 300 * 300 * 4)
    empirical_ntk(net, x)


def test_the_symmetric_kernel_takes_half_the_products():
    """Eight strips from the diagonal on: .5625 of the pairs, and the layers of one side only."""
    net, x = mlp(20, 64, 2, 1), torch.randn(1024, 20)
    pairs = []
    original = tiles.Kernel._tile

    def counted(self, left, right, members, workspace):
        pairs.append(tiles._samples(left) * tiles._samples(right))
        return original(self, left, right, members, workspace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles.Kernel, "_tile", counted)
        empirical_ntk(net, x)
        assert sum(pairs) == 0.5625 * 1024**2
        pairs.clear()
        empirical_ntk(net, x, x)
        assert sum(pairs) == 1024**2


@pytest.mark.parametrize("most", [1, 5, 12])
def test_out_of_memory_halves_the_batch_and_is_logged_once(monkeypatch, caplog, most):
    net, x = networks()["cnn"]
    expected = empirical_ntk(net, x)
    original, seen = tiles.layers, []

    def scarce(request, plan, members, x, into=None):
        seen.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(request, plan, members, x, into)

    monkeypatch.setattr(tiles, "layers", scarce)
    with caplog.at_level(logging.WARNING, logger="models.blocks"):
        kernel = empirical_ntk(net, x)
    assert len(caplog.records) == 1
    assert "Out of memory" in caplog.text
    assert seen.count(max(seen)) == 1
    assert float((kernel - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_out_of_memory_in_a_tile_halves_the_tile(monkeypatch, caplog):
    net, x = networks()["mlp"]
    expected = empirical_ntk(net, x)
    original = tiles.Kernel._tile

    def scarce(self, left, right, members, workspace):
        if tiles._samples(left) * tiles._samples(right) > 5000:
            raise MemoryError
        return original(self, left, right, members, workspace)

    monkeypatch.setattr(tiles.Kernel, "_tile", scarce)
    with caplog.at_level(logging.WARNING, logger="models.blocks"):
        kernel = empirical_ntk(net, x)
    assert len(caplog.records) == 1
    assert float((kernel - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_a_kernel_on_disk_is_the_kernel_in_memory(tmp_path, outputs):
    net, x = mlp(5, 16, 2, 3).double(), torch.randn(40, 5, dtype=torch.float64)
    for x2 in (None, x[:7]):
        path = tmp_path / f"{x2 is None}.npy"
        expected = empirical_ntk(net, x, x2, outputs=outputs)
        written = write_ntk(path, net, x, x2, outputs=outputs, memory=2**15)
        torch.testing.assert_close(written, expected, rtol=1e-12, atol=1e-12)
        stamp = path.stat().st_mtime_ns
        torch.testing.assert_close(write_ntk(path, net, x, x2, outputs=outputs), written, rtol=0, atol=0)
        assert path.stat().st_mtime_ns == stamp
        with pytest.raises(ValueError, match="holds something else: remove it with"):
            write_ntk(path, mlp(5, 16, 2, 3).double(), x, x2, outputs=outputs)
    with pytest.raises(ValueError, match="not 'matrix_free'"):
        write_ntk(tmp_path / "k.npy", net, x, method="matrix_free")


HEAVY = {"cnn", "cnn of ten outputs", "resnet", "by sample"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in HEAVY)) for n in networks()])
def test_a_stopped_kernel_is_the_undisturbed_one_to_the_bit(name, tmp_path, monkeypatch):
    """Stopped after any of its tiles, in the middle of a strip too, and gone on with more memory."""
    net, x = networks()[name]
    original, count, limit = tiles.Kernel._tile, 0, 10**9

    def interrupted(*arguments):
        nonlocal count
        if count == limit:
            raise KeyboardInterrupt
        count += 1
        return original(*arguments)

    monkeypatch.setattr(tiles.Kernel, "_tile", interrupted)
    for x2 in (None, x[: len(x) // 2 + 1]):
        for memory in (2**24, 2**23, 2**22, 2**21, 2**20, 2**19, 2**18, 2**17):
            count, limit, whole = 0, 10**9, tmp_path / f"{x2 is None} {memory}.npy"
            write_ntk(whole, net, x, x2, memory=memory)
            if count > 2:
                break
        total, path = count, tmp_path / "part.npy"
        assert total > 2
        for stop in (1, total // 2):
            count, limit = 0, stop
            with pytest.raises(KeyboardInterrupt):
                write_ntk(path, net, x, x2, memory=memory)
            limit = 10**9
            write_ntk(path, net, x, x2, memory=4 * memory)
            assert count == total  # none is computed again
            assert path.read_bytes() == whole.read_bytes()
            path.unlink()


PROGRAM = """
import sys, time, torch
from bench.ntk import tiles, write_ntk
from models.mlp import mlp
torch.set_num_threads(1); torch.manual_seed(0)
original, count = tiles.Kernel._tile, 0
def slow(*arguments):
    global count
    count += 1
    time.sleep(float(sys.argv[2]))
    return original(*arguments)
tiles.Kernel._tile = slow
net, x = mlp(5, 16, 2, 1).double(), torch.randn(400, 5, dtype=torch.float64)
kernel = write_ntk(sys.argv[1], net, x, outputs="sum", memory=2**17)
print(count, float(kernel.sum()))
"""


def test_a_kernel_on_disk_goes_on_where_it_was(tmp_path, monkeypatch):
    net, x = mlp(5, 16, 2, 1).double(), torch.randn(200, 5, dtype=torch.float64)
    original, count, limit = tiles.Kernel._tile, 0, 4

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == limit:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(tiles.Kernel, "_tile", interrupted)
    path = tmp_path / "kernel.npy"
    with pytest.raises(KeyboardInterrupt):
        write_ntk(path, net, x, outputs="sum", memory=2**17)
    with path.with_name("kernel.npy.json").open("a") as file:
        file.write('{"tile": [0')  # what a kill in the middle of a line leaves
    with pytest.raises(ValueError, match="memory must be at least 131072 bytes, with which "):
        write_ntk(path, net, x, outputs="sum", memory=2**16)
    count, limit = 0, 10**9
    written = write_ntk(path, net, x, outputs="sum", memory=2**20)  # more memory: still the tiles it began with
    rest, count = count, 0
    assert torch.equal(written, write_ntk(tmp_path / "b.npy", net, x, outputs="sum", memory=2**17))
    assert rest == count - 3
    assert rest > 3


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_is_resumed(tmp_path):
    """Twelve times by SIGKILL, at random moments; none of the tiles is lost, or other than undisturbed in a bit."""

    def start(path: Path, pause: float) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(path), str(pause)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole, _ = start(tmp_path / "whole.npy", 0).communicate(timeout=120)
    path = tmp_path / "part.npy"
    log = path.with_name(path.name + ".json")

    def finished() -> int:
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        return sum("tile" in line and line.endswith("\n") for line in lines)

    random, done = Random(0), 0
    for _ in range(12):
        process = start(path, 0.05)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and finished() == done:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before, done = done, finished()
        assert done > before
        with log.open("a") as file:
            file.write('{"tile": [0')  # what a kill in the middle of a line leaves
    rest, _ = start(path, 0).communicate(timeout=120)
    assert int(rest.split()[0]) == int(whole.split()[0]) - done  # only what was missing
    assert int(rest.split()[0]) > 0
    assert (tmp_path / "whole.npy").read_bytes() == path.read_bytes()
