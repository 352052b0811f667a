"""W&B: what was logged can be read back, nothing is written elsewhere, and no failure of it loses a result."""

import json
import logging
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import store, tracking
from bench.record import Record, Score

REPOSITORY = Path(__file__).resolve().parents[2]


def record(status: str = "done") -> Record:
    time = np.geomspace(1, 100, 40) * np.array([[1.0], [1.3]])
    loss = 1 / (1 + time)
    loss[1, 30:] = np.nan
    snapshots = time[:, ::8]
    arrays = {
        "loss_time": time,
        "loss": loss,
        "snapshot_time": snapshots,
        "snapshot_motion": np.log(snapshots),
        "snapshot_r2": 1 - 1 / snapshots,
        "spectrum_initial": np.tile(np.arange(1, 21.0) ** -2, (2, 1)),
        "member_data": np.array([0, 0]),
    }
    scores = (Score("after/skill", 0.84, 0.02, 2, floor=0.3), Score("initial/skill", -0.5, math.nan, 2))
    return Record("staircase-mlp-w8-abc", status, "", {"width": 8, "seeds": {"data": 1, "init": 2}}, scores, {}, arrays)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One offline run, in its own process with its own home: what was printed, written and logged."""
    base = tmp_path_factory.mktemp("tracking")
    home, runs = base / "home", base / "runs"
    home.mkdir()
    store.write_record(base / "cell", record())
    code = (
        "import sys; from pathlib import Path; from bench import store, tracking; base = Path(sys.argv[1])\n"
        "record = store.read_record(base / 'cell')\n"
        "tracking.Tracker(record.name, mode='offline', project='p', group='after_kernel',"
        " run_id='abc123', config={'trainer': {'step': 1.5}}, folder=base / 'runs').finish(record)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment = {**clean, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(base)], cwd=home, env=environment, capture_output=True, text=True
    )
    files = list(runs.glob("wandb/offline-run-*/run-abc123.wandb"))
    return {"process": done, "home": home, "files": files, "records": [r for f in files for r in read(f)]}


def tracker(folder: Path) -> tracking.Tracker:
    return tracking.Tracker(record().name, mode="offline", project="p", group="g", run_id="i", config={}, folder=folder)


def read(path: Path) -> Iterator[Any]:
    """The protobuf records of a ``.wandb`` file: a leveldb log after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):
            return  # its process was killed
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(parts)
            parts = b""
            yield parsed


def rows_of(records: Iterable[Any]) -> list[dict[str, Any]]:
    """The rows of the history, each with its ``_step``."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in r.history.item}
        | {"_step": r.history.step.num}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]


def summary_of(records: Iterable[Any]) -> dict[str, Any]:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for r in records
        if r.WhichOneof("record_type") == "summary"
        for item in r.summary.update
    }


def test_offline_run_is_quiet_and_writes_in_its_folder_only(offline: dict[str, Any]) -> None:
    assert offline["process"].returncode == 0
    assert offline["process"].stdout == offline["process"].stderr == ""
    assert len(offline["files"]) == 1
    assert list(offline["home"].rglob("*")) == []


def test_offline_run_holds_identity_and_config(offline: dict[str, Any]) -> None:
    run = next(r.run for r in offline["records"] if r.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project, run.run_group, run.display_name) == (
        "abc123", "p", "after_kernel", "staircase-mlp-w8-abc")  # fmt: skip
    updates = [run.config, *(r.config for r in offline["records"] if r.WhichOneof("record_type") == "config")]
    config = {item.key: json.loads(item.value_json) for config in updates for item in config.update}
    assert config["trainer"] == {"step": 1.5}
    assert config["card"]["width"] == 8


def test_offline_run_holds_curves_tables_and_plots(offline: dict[str, Any]) -> None:
    rows = rows_of(offline["records"])
    curve = [row for row in rows if "training/loss" in row]
    assert len(curve) > 20
    assert all(row["training/loss"] > 0 for row in curve)
    assert any("training/kernel_motion" in row and "training/after_r2" in row for row in curve)
    last = rows[-1]
    assert last["scores/nrows"] == 2
    assert last["plots/loss_table/nrows"] == 40 + 30  # the padding is left out
    assert last["plots/spectra_table/nrows"] == 20
    table = json.loads((offline["files"][0].parent / "files" / last["scores/path"]).read_text())
    assert table["data"][0] == ["after/skill", 0.84, 0.02, 2, None, 0.3]
    metrics = {
        r.metric.glob_name or r.metric.name for r in offline["records"] if r.WhichOneof("record_type") == "metric"
    }
    assert "training/*" in metrics


def test_offline_run_holds_the_summary(offline: dict[str, Any]) -> None:
    logged = summary_of(offline["records"])
    assert logged["after/skill"] == 0.84
    assert logged["after/skill_standard_error"] == 0.02
    assert logged["initial/skill"] == -0.5
    assert "initial/skill_standard_error" not in logged
    assert logged["status"] == "done"
    assert logged["width"] == 8


def test_what_was_handed_over_is_not_handed_over_again(tmp_path: Path) -> None:
    """By one process, which dies while it writes; then by two more."""
    first = tracking.Rows(tmp_path)
    assert first.begin("one", lambda name: False) == []
    assert step_of(first.live({"a": {"steps": 0.0}, "b": {"steps": 0.0}})) == 0
    assert step_of(first.live({"a": {"steps": 5.0}})) == 1
    with first.path.open("a") as file:
        file.write('{"step": 2, "ro')
    second = tracking.Rows(tmp_path)
    assert not second.closed
    repeated = second.begin("two", lambda name: False)
    assert [(step, row["live/a/steps"]) for step, row in repeated] == [(0, 0.0), (1, 5.0)]
    step, row = second.live({"a": {"steps": 5.0}, "b": {"steps": 3.0}}) or (-1, {})
    assert (step, row["live/b/steps"], "live/a/steps" in row) == (2, 3.0, False)
    assert second.live({"a": {"steps": 4.0}, "b": {"steps": 3.0}}) is None
    rows = [{"x": float(i)} for i in range(4)]
    handed = second.curves(rows)
    assert [next(handed) for _ in range(2)] == [(3, {"x": 0.0}), (4, {"x": 1.0})]
    third = tracking.Rows(tmp_path)
    assert [step for step, _ in third.begin("three", lambda name: name == "two")] == []  # sent: nothing is repeated
    assert list(third.curves(rows)) == [(5, {"x": 2.0}), (6, {"x": 3.0})]
    assert third.table() == 7
    third.close(ended=True)
    fourth = tracking.Rows(tmp_path)
    assert fourth.ended
    assert [step for step, _ in fourth.begin("four", lambda name: name == "two")] == [5, 6]
    assert not fourth.ended
    assert list(fourth.curves([{"x": 9.0}])) == [(8, {"x": 9.0})]  # more seeds: curves of another mean


def step_of(handed: tuple[int, Any] | None) -> int:
    return -1 if handed is None else handed[0]


def test_history_averages_members_on_one_grid() -> None:
    rows = tracking.history(record())
    times = np.array([row[tracking.TIME] for row in rows])
    assert np.all(np.diff(times) > 0)
    both = [row for row in rows if "training/after_r2" in row]
    # at one time the members have one loss, so the mean over them is that curve, up to interpolation
    assert all(row["training/after_r2"] == pytest.approx(1 - 1 / row[tracking.TIME], abs=0.15) for row in both)
    assert max(row[tracking.TIME] for row in rows if "training/loss" in row) < times[-1] + 1e-9


def test_a_record_without_arrays_has_no_history() -> None:
    empty = Record("x", "failed", "why", {})
    assert tracking.history(empty) == []
    assert tracking.summary(empty) == {}


def test_a_failure_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        tracker(blocked).finish(record())
    assert len(caplog.records) == 1
    assert "staircase-mlp-w8-abc" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_a_failure_inside_wandb_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no\nspace")

    monkeypatch.setattr(tracking, "_tables", broken)
    before = places()
    one = tracker(tmp_path)
    one.live({"a": {"steps": 0.0, "time": 0.0, "loss": 1.0}})
    one.finish(record())
    one.live({"a": {"steps": 1.0, "time": 0.0, "loss": 1.0}})
    (line,) = said(caplog)
    assert "no space" in line
    assert not tracking.is_tracked("offline", tmp_path)
    assert places() == before


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we log; W&B logs, too."""
    return [r.getMessage() for r in caplog.records if r.name == "bench.tracking"]


def places() -> dict[str, str]:
    """Where W&B keeps what, by the environment (which also has its process, once there is one)."""
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name.endswith("_DIR")}


def test_a_full_disk_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking.Rows, "_write", full)
    one = tracker(tmp_path)
    for step in range(3):
        one.live({"a": {"steps": float(step), "time": 0.0, "loss": 1.0}})
    one.finish(record())
    assert said(caplog) == [
        "W&B did not record staircase-mlp-w8-abc ([Errno 28] No space left on device); its result is safe on disk."
    ]
    assert not tracking.is_tracked("offline", tmp_path)


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bench import tracking; from bench.record import Record\n"
        "one = tracking.Tracker('x', mode='disabled', project='p', group='g', run_id='i', config={},"
        " folder=Path('nowhere'))\n"
        "one.live({'a': {'steps': 0.0}}); one.finish(Record('x', 'done', '', {}))\n"
        "assert 'wandb' not in sys.modules and 'torch' not in sys.modules and not Path('nowhere').exists()"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_check_needs_no_account_offline(mode: str) -> None:
    tracking.check(mode)


def test_check_knows_the_modes() -> None:
    with pytest.raises(ValueError, match="Unknown tracking mode 'on'"):
        tracking.check("on")


def test_check_online_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match="wandb login"):
        tracking.check("online")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0\n")
    tracking.check("online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        tracking.check("online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tracking.check("online")


@pytest.mark.parametrize("mode", tracking.MODES)
def test_the_config_group_names_the_modes(mode: str) -> None:
    text = (REPOSITORY / "conf" / "tracking" / f"{mode}.yaml").read_text()
    assert f"mode: {mode}\n" in text
    assert "project: widebench\n" in text
