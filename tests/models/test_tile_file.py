"""A kernel's file: refused where it cannot be used, and written by one process at a time."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.tile_file import TileFile

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_for_which_there_is_no_room_is_refused(tmp_path, monkeypatch) -> None:
    """A mapped file that runs out of disk later would end the process by a signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(ValueError, match=r"^The 0.008 GB of .*k.npy cannot be written: File too large.$"):
            TileFile(tmp_path / "k.npy", (1000, 1000), torch.float64, "one")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ValueError, match=r"^The 0.008 GB of .*k.npy cannot be written: No space left on device.$"):
            TileFile(tmp_path / "k.npy", (1000, 1000), torch.float64, "one")
    assert not (tmp_path / "k.npy").exists()
    assert not (tmp_path / "k.npy.part").exists()
    with TileFile(tmp_path / "k.npy", (1000, 1000), torch.float64, "one") as file:
        assert file.tensor.shape == (1000, 1000)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written: (Not a directory|File exists)"):
        TileFile(tmp_path / "file" / "k.npy", (10, 10), torch.float64, "one")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path, log: os.truncate(path, 500), "is damaged"),
        (lambda path, log: path.write_bytes(b""), "is damaged"),
        (lambda path, log: path.write_bytes(b"no array" * 20), "is damaged"),
        (lambda path, log: np.save(path, np.zeros((9, 10))), "is damaged"),
        (lambda path, log: log.write_text(log.read_text() + "nonsense\n"), "has a damaged list of tiles"),
        (lambda path, log: log.write_text(log.read_text() + "7\n"), "has a damaged list of tiles"),
        (lambda path, log: log.write_bytes(b"\xff\xfe\n"), "has a damaged list of tiles"),
        (lambda path, log: log.write_text(""), "holds something else"),
        (lambda path, log: log.unlink(), "holds something else"),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, damage, sentence) -> None:
    path = tmp_path / "k.npy"
    log = tmp_path / "k.npy.json"
    with TileFile(path, (10, 10), torch.float64, "one") as file:
        file.add(slice(0, 5), slice(0, 5))
    damage(path, log)
    with pytest.raises(ValueError, match=f"{sentence}: remove it with k.npy.json, or name another file.$") as refused:
        TileFile(path, (10, 10), torch.float64, "one")
    for left in (path, log):
        left.unlink(missing_ok=True)
    with TileFile(path, (10, 10), torch.float64, "one") as file:  # while the error and its traceback are still there
        assert not file.holds(slice(0, 5), slice(0, 5)), refused


def test_what_decides_the_tiles_is_settled_once(tmp_path) -> None:
    path = tmp_path / "k.npy"
    with TileFile(path, (10, 10), torch.float64, "one") as file:
        assert file.settle("memory", 5) == file.settle("memory", 6) == 5
    with TileFile(path, (10, 10), torch.float64, "one") as again:
        assert again.settle("memory", 7) == 5
        assert again.settle("grid", [3, 4]) == [3, 4]


def test_two_processes_do_not_write_the_same_file(tmp_path) -> None:
    """The second is told so; a killed one leaves nothing locked; a finished file is open to all."""
    path = tmp_path / "k.npy"
    script = f"""
import sys, time, torch
from pathlib import Path
from models.tile_file import TileFile
with TileFile(Path({str(path)!r}), (10, 10), torch.float64, "one") as file:
    print("open", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match=r"k.npy is being written by another process: wait, or name another.*"):
            TileFile(path, (10, 10), torch.float64, "one")
        other.kill()
    with TileFile(path, (10, 10), torch.float64, "one") as file:
        with pytest.raises(ValueError, match="another process"):
            TileFile(path, (10, 10), torch.float64, "one")
        file.finish()
    with TileFile(path, (10, 10), torch.float64, "one") as one, TileFile(path, (10, 10), torch.float64, "one") as two:
        assert one.complete
        assert two.complete
    assert sorted(found.name for found in tmp_path.iterdir()) == ["k.npy", "k.npy.json"]
