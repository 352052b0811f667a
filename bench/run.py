"""The main job: plan every cell, hand them to Hydra's launcher, show what came out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from bench import store, tracking
from bench.plan import CONF, PlanError, Planned, build, plan
from bench.record import Record
from bench.studies import cell as study

SHOWN = ("after", "initial", "infinite_ntk")


def main(arguments: Sequence[str]) -> int:
    """``python -m bench``. Returns the exit code: 0, 1 (a cell is not done) or 2 (wrong settings, nothing trained)."""
    arguments = list(arguments) or ["experiment=after_kernel"]
    flags = [a for a in arguments if a.startswith("-")]
    if set(flags) - {"-m", "--multirun"}:  # --help, --cfg job: Hydra's own
        return _hydra(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread a process, and the same bits on every machine
    started = time.perf_counter()
    try:
        cells = plan([a for a in arguments if a not in flags], multirun=bool(flags))
    except PlanError as error:
        print(f"widebench: {error}", file=sys.stderr)
        return 2
    several = len(cells) > 1
    if several and not torch.cuda.is_available() and not any(a.startswith("hydra/launcher") for a in arguments):
        arguments.insert(0, "hydra/launcher=joblib")
    _hydra(arguments)
    records = [_read(planned) for planned in cells]
    print(table(records))
    print(_split(cells, time.perf_counter() - started))
    return int(any(record.status != "done" for record in records))


def _hydra(arguments: Sequence[str]) -> int:
    before, sys.argv = sys.argv, ["python -m bench", *arguments]
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = before
    return 0


def job(config: DictConfig) -> None:
    """One cell, in whatever process the launcher gives it. Never raises: what went wrong is in the record."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    cell = build(config)
    folder = Path(config.runs) / cell.name
    lock = store.lock(folder)
    try:
        with lock.acquire(timeout=0):
            if config.force:
                _clear(folder)
            record = _run(config, cell, folder, started)
    except filelock.Timeout:
        print(f"{cell.name}: another process is at work on it; skipped.", flush=True)
        return
    print(f"{cell.name}: {record.status} in {time.perf_counter() - started:.1f} s. {record.reason}", flush=True)


def _run(config: DictConfig, cell: study.Cell, folder: Path, started: float) -> Record:
    try:
        record, seconds = study.run(cell, folder)
    except Exception as error:  # one cell's failure must not end the sweep
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        record, seconds = Record(cell.name, "failed", reason, dict(cell.card)), {}
        store.write_record(folder, record)
    except KeyboardInterrupt:
        store.write_record(folder, Record(cell.name, "interrupted", "Interrupted.", dict(cell.card)))
        raise
    if seconds:
        begun = time.process_time()
        settings: Any = OmegaConf.to_container(config, resolve=True)
        tracking.track(record, mode=config.tracking.mode, project=config.tracking.project, group=config.name,
                       run_id=cell.name.rpartition("-")[2], config=settings, folder=folder)  # fmt: skip
        seconds["tracking"] = time.process_time() - begun
        store.write_json(folder / "environment.json", _environment(cell, seconds, time.perf_counter() - started))
    return record


def _clear(folder: Path) -> None:
    for path in [*folder.glob("*.json"), *folder.glob("*.npz"), *folder.glob("trained/*"), *folder.glob("scores/*")]:
        path.unlink()


def _read(planned: Planned) -> Record:
    try:
        return store.read_record(planned.folder)
    except (FileNotFoundError, ValueError) as error:
        reason = "left no record" if isinstance(error, FileNotFoundError) else str(error)
        return Record(planned.cell.name, "interrupted", reason, dict(planned.cell.card))


def table(records: Sequence[Record]) -> str:
    """A row a cell: the network's test error, kernel motion, and R2 and skill of each predictor with its error."""
    names = [f"{predictor}/{metric}" for predictor in SHOWN for metric in ("r2", "skill")]
    names = ["network/test_error", "kernel/motion", *names, "labels/r2"]
    rows = [["task", "width", "richness", *[n.replace("infinite_ntk", "infinite") for n in names], "seeds", "status"]]
    for record in sorted(records, key=lambda r: [str(r.card.get("task")), r.card.get("width", 0), str(r.name)]):
        cells = [_number(record, name) for name in names]
        row = [str(record.card.get(key)) for key in ("task", "width", "richness")]
        rows.append([*row, *cells, str(record.card.get("members_scored", 0)), record.status])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _number(record: Record, name: str) -> str:
    score = record.score(name)
    return "-" if score is None else f"{score.value:.3g} ± {score.standard_error:.1g}"


def _split(cells: Sequence[Planned], wall: float) -> str:
    total: dict[str, float] = {}
    for planned in cells:
        path = planned.folder / "environment.json"
        for name, seconds in (store.read_json(path)["split"] if path.exists() else {}).items():
            total[name] = total.get(name, 0.0) + seconds
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in total.items())
    return f"CPU seconds of these cells: {parts}. Wall time of this command: {wall:.0f} s."


def _environment(cell: study.Cell, split: dict[str, float], wall: float) -> dict[str, Any]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(CONF), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "git_sha": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(cell.trainer.torch_device()),
        "processor": platform.processor() or platform.machine(),
        "wall_seconds": wall,
        "cpu_seconds": sum(split.values()),
        "split": split,
    }
