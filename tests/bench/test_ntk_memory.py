"""The budget is kept, running out of memory is survived, and a kernel on disk is resumed."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from live_bytes import LiveBytes
from ntk_networks import OwnAttention, resnet
from torch import Tensor, nn

from bench.ntk import empirical_ntk, tiles, write_ntk
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
net, x = mlp(5, 16, 2, 1).double(), torch.randn(200, 5, dtype=torch.float64)
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
    count, limit = 0, 10**9
    written = write_ntk(path, net, x, outputs="sum", memory=2**20)  # another budget: still the tiles it began with
    rest, count = count, 0
    torch.testing.assert_close(
        written, write_ntk(tmp_path / "b.npy", net, x, outputs="sum", memory=2**17), rtol=1e-11, atol=1e-11
    )
    assert rest == count - 3
    assert rest > 3


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path):
    def start(path: Path, pause: float) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(path), str(pause)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole, _ = start(tmp_path / "whole.npy", 0).communicate(timeout=60)
    path = tmp_path / "part.npy"
    log = path.with_name(path.name + ".json")
    first = start(path, 0.2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("tile") >= 3):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = log.read_text().count("tile")
    with log.open("a") as file:
        file.write('{"tile": [0')  # what a kill in the middle of a line leaves
    rest, _ = start(path, 0).communicate(timeout=60)
    assert int(rest.split()[0]) == int(whole.split()[0]) - done  # only what was missing
    assert done >= 3
    assert rest.split()[1] == whole.split()[1]  # to the bit
    assert (tmp_path / "whole.npy").read_bytes() == path.read_bytes()
