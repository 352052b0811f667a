"""What the commands say of themselves."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import local_slurm

COMMANDS = ("plan.__main__", "diagnose", "design", "report.__main__", "dashboard", "sync")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_how_the_command_is_called(command, flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{command}").main([flag])
    captured = capsys.readouterr()
    assert ended.value.code == 0
    assert captured.out.startswith(f"use python -m bench.{command.removesuffix('.__main__')} ")
    assert captured.err == ""
    assert not list(tmp_path.iterdir())


def test_help_starts_no_slurm(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_slurm, "missing", list)
    monkeypatch.setattr(local_slurm, "local_slurm", None)
    assert local_slurm.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("use python tools/local_slurm.py")
    assert local_slurm.main(["--nope"]) == 2
