"""``python -m bench.sync`` against a stub ``wandb``: what it is called with, twice, and when some of it fails."""

import os
import stat
import sys
from pathlib import Path

import pytest

from bench import store, sync
from bench.tracking import Rows

STUB = """#!{python}
import sys
from pathlib import Path
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if Path({broken!r}).exists() and Path({broken!r}).read_text() in sys.argv[-1]:
    print("wandb: ERROR no route to the server", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cells, the second without W&B, the third taken up again; and a ``wandb`` that writes what it is told."""
    for cell, run in (("a", "offline-run-1-aa"), ("c", "offline-run-1-cc"), ("c", "offline-run-2-cc")):
        store.write_bytes(tmp_path / "runs" / cell / "wandb" / run / f"run-{run[-2:]}.wandb", b":W&B")
        Rows(tmp_path / "runs" / cell).close(ended=True)
    store.write_text(tmp_path / "runs" / "b" / "record.json", "{}")
    stub = tmp_path / "bin" / "wandb"
    log, broken = str(tmp_path / "log"), str(tmp_path / "broken")
    store.write_text(stub, STUB.format(python=sys.executable, log=log, broken=broken))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(place: Path) -> list[str]:
    log = place / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_each_run_is_sent_once(place, capsys):
    assert sync.main([]) == 0
    assert calls(place) == [
        "sync runs/a/wandb/offline-run-1-aa",
        "sync runs/c/wandb/offline-run-1-cc",
        "sync runs/c/wandb/offline-run-2-cc",
    ]
    assert capsys.readouterr().out.splitlines() == [
        "a: sent.", "c: sent.", "c: sent.", "3 sent, 0 sent earlier, 0 not sent."]  # fmt: skip
    assert sync.main([]) == 0
    assert len(calls(place)) == 3
    assert "0 sent, 3 sent earlier, 0 not sent." in capsys.readouterr().out


def test_studies_are_sent_too(place):
    folder = place / "runs" / "studies" / "d"
    store.write_bytes(folder / "wandb" / "offline-run-1-dd" / "run-dd.wandb", b":W&B")
    Rows(folder).close(ended=True)
    assert sync.main([]) == 0
    assert calls(place)[-1] == "sync runs/studies/d/wandb/offline-run-1-dd"


def test_what_wandb_itself_sent_is_left(place):
    sync.mark(place / "runs/a/wandb/offline-run-1-aa/run-aa.wandb").touch()
    assert sync.main([]) == 0
    assert [call[-2:] for call in calls(place)] == ["cc", "cc"]


def test_a_failure_is_told_and_only_that_is_tried_again(place, capsys):
    (place / "broken").write_text("offline-run-1-cc")
    assert sync.main([]) == 1
    out = capsys.readouterr().out
    assert "c: not sent: wandb: ERROR no route to the server" in out
    assert "2 sent, 0 sent earlier, 1 not sent." in out
    (place / "broken").unlink()
    assert sync.main([]) == 0
    assert calls(place)[3:] == ["sync runs/c/wandb/offline-run-1-cc"]


def test_a_cell_at_work_is_left_for_later(place, capsys):
    with store.lock(place / "runs" / "a"):
        assert sync.main(["runs=runs"]) == 1
    assert "a: another process is at work on it" in capsys.readouterr().out
    assert not any("runs/a/" in call for call in calls(place))


def test_what_a_killed_process_left_is_not_sent(place, capsys):
    Rows(place / "runs" / "a").table()
    assert sync.main([]) == 1
    assert "a: its process was killed; run it again first." in capsys.readouterr().out
    assert not any("runs/a/" in call for call in calls(place))


def test_entity_and_project_go_to_wandb(place):
    assert sync.main(["entity=me", "project=other"]) == 0
    assert calls(place)[0] == "sync --entity=me --project=other runs/a/wandb/offline-run-1-aa"


@pytest.mark.parametrize(("arguments", "named"), [(["run=x"], "run=x"), (["runs=nowhere"], "nowhere")])
def test_wrong_arguments_are_one_sentence(place, capsys, arguments, named):
    assert sync.main(arguments) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert calls(place) == []


def test_without_an_account_nothing_is_tried(place, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(place / "none"))
    assert sync.main([]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert calls(place) == []
