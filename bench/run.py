"""The main job: plan every cell, hand them to Hydra's launcher, show what came out."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import filelock
import hydra
import torch
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from bench import progress, store, tracking
from bench.environment import environment, flops_per_step, process_name
from bench.launch import is_apart, launch
from bench.plan import CONF, PlanError, Planned, build, build_study, parse, plan, search_own, shows, state
from bench.record import Record
from bench.report import text_table, write_report
from bench.report.panels import text_list
from bench.savepoint import Interrupted, sigterm
from bench.studies import cell as study
from bench.studies.live import Watcher
from bench.studies.study import FOLDER, find, fingerprint, obtain

PATIENCE = 5.0
"""Seconds until a folder that another process holds is skipped: the workers of a killed command need some to end."""


def main(arguments: Sequence[str]) -> int:
    """``python -m bench``. Returns the exit code: 0, 1 (a cell is not done) or 2 (wrong settings, nothing trained).

    After SIGTERM (a cluster's preemption) the state of what was training is written, its record says "interrupted", and
    the process ends with 75 (``savepoint.EXIT_CODE``): the same command goes on from there.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread a process, and the same bits on every machine
    started = time.perf_counter()
    try:
        if shows(arguments):  # --help, --cfg job: Hydra's own
            _hydra(arguments)
            return 0
        overrides, flags = parse(arguments)
        cells = plan(overrides, multirun=bool(flags))
    except PlanError as error:
        print(f"widebench: {error}", file=sys.stderr)
        return 2
    planned = time.process_time()
    missing = [p for p in cells if not state(p).done]
    if missing:
        with progress.watch([progress.Job(p.folder, p.work) for p in missing]):
            try:
                launch(missing, overrides, flags, _hydra)
            except (PlanError, RuntimeError) as error:
                print(f"widebench: {error}", file=sys.stderr)
    records = [_read(p) for p in cells]
    for of_study, text in ((False, text_table), (True, text_list)):
        some = [record for p, record in zip(cells, records, strict=True) if (p.request is not None) == of_study]
        print(text(some) if some else "", end="\n" if some else "")
    begun = time.process_time()
    _report(cells)
    own = {"planning": planned, "report": time.process_time() - begun}
    print(_split(cells, own, time.perf_counter() - started))
    return int(any(record.status != "done" for record in records))


def _report(cells: Sequence[Planned]) -> None:
    """The pages and the tables of everything in ``runs``; those of these cells are named."""
    config = cells[0].config
    if config.report is None:
        return
    try:
        report = write_report(Path(config.runs), Path(config.report))
    except (OSError, ValueError) as error:
        print(f"widebench: no report: {error}", file=sys.stderr)
        return
    pages = {p.request.name if p.request else "report" for p in cells}
    print("Report: " + ", ".join(str(file) for file in report.files if file.stem in pages and file.suffix == ".html"))


def _hydra(arguments: Sequence[str]) -> None:
    before, sys.argv = sys.argv, ["python -m bench", *arguments]
    search_own()
    try:
        with mock.patch.object(Sweeper, "validate_batch_is_legal"):  # it composes every cell, as the plan has done
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = before


def job(config: DictConfig) -> None:
    """One cell, in whatever process the launcher gives it. Never raises: what went wrong is in the record."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    if progress.stopping():
        return
    try:
        if config.study is not None:
            _study(config, started)
            return
        cell = build(config)
    except PlanError as error:  # what the plan found has changed since
        print(f"widebench: {error}", file=sys.stderr, flush=True)
        return
    folder = Path(config.runs) / cell.name
    if is_apart(folder):
        return
    try:
        with store.lock(folder).acquire(timeout=PATIENCE):
            if config.force:
                _clear(folder)
            if record := study.finished(cell.settings, folder):
                if not tracking.is_tracked(config.tracking.mode, folder):
                    _tracker(config, cell.name, folder).finish(record)
            else:
                _run(config, cell, folder, started)
    except filelock.Timeout:
        print(f"{cell.name}: another process is at work on it; skipped.", flush=True)
    except OSError as error:  # a full disk: there is nowhere to record it
        print(f"{cell.name}: failed: {error}", file=sys.stderr, flush=True)


def _study(config: DictConfig, started: float) -> None:
    """A study instead of a cell: the same folders, lock and records as the claims have, which read them, too."""
    request, below = build_study(config), Path(config.runs) / FOLDER
    folder = below / request.name
    if is_apart(folder):
        return
    try:
        with store.lock(folder):  # makes the folder; another process may be at work there
            if config.force:
                _clear(folder)
        code = fingerprint()
        if find(request, below, code) and tracking.is_tracked(config.tracking.mode, folder):
            return
        progress.reporter(folder)(0.0)  # begun
        try:
            record = obtain(request, below, code)
            with store.lock(folder):  # two processes must not write the same W&B run
                _tracker(config, request.name, folder).finish(record)
        except Exception as error:  # one study's failure must not end the sweep
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            record = Record(request.name, "failed", reason, {})
            store.write_record(folder, record)
        progress.clear(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        seconds = {"studies": float(record.card.get("seconds", 0.0))}
        found = environment(device, None, seconds, time.perf_counter() - started)
        store.write_json(folder / progress.ENVIRONMENT, found)
    except OSError as error:  # a full disk: there is nowhere to record it
        print(f"{request.name}: failed: {error}", file=sys.stderr, flush=True)


def _run(config: DictConfig, cell: study.Cell, folder: Path, started: float) -> None:
    """Train and score, then W&B and the environment, and the record last: what has one lacks nothing."""
    seconds: dict[str, float] = {}
    record = Record(cell.name, "interrupted", "Interrupted: run it again, and it goes on.", dict(cell.card))
    all_here = not any(folder.glob("trained/*.npz"))
    report = progress.reporter(folder)
    report(0.0)  # begun
    tracker = _tracker(config, cell.name, folder)
    watcher = Watcher(cell, tracker.live) if tracker.works else None
    try:
        with sigterm() as told:
            asked = progress.asked_to_stop()
            record, seconds = study.run(cell, folder, report, lambda: told() or asked(), watcher)
        begun = time.process_time()
        tracker.finish(record)
        live = watcher.seconds if watcher else 0.0
        seconds["training"] -= live
        seconds["tracking"] = live + time.process_time() - begun
    except Interrupted:
        tracker.finish(record)
        if not progress.stop_all():  # of a launcher's workers, one that ends takes the others with it at once
            raise
    except Exception as error:  # one cell's failure must not end the sweep
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        record = Record(cell.name, "failed", reason, dict(cell.card))
        tracker.finish(record)
    finally:
        progress.clear(folder)
        wall, device = time.perf_counter() - started, cell.trainer.torch_device()
        found = environment(device, flops_per_step(cell), seconds, wall, trained_all=all_here)
        store.write_json(folder / progress.ENVIRONMENT, found)
        store.write_record(folder, record)


def _tracker(config: DictConfig, name: str, folder: Path) -> tracking.Tracker:
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return tracking.Tracker(name, mode=config.tracking.mode, project=config.tracking.project, group=config.name,
                            run_id=folder.name.rpartition("-")[2], config=settings, folder=folder)  # fmt: skip


def _clear(folder: Path) -> None:
    for path in [*folder.glob("*.json"), *folder.glob("*.npz"), *folder.glob("trained/*"), *folder.glob("scores/*")]:
        path.unlink()
    shutil.rmtree(folder / tracking.FOLDER, ignore_errors=True)


def _read(planned: Planned) -> Record:
    try:
        return store.read_record(planned.folder)
    except (FileNotFoundError, ValueError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = "Another process is at work on it." if store.held(planned.folder) else "It left no record."
        return Record(planned.name, "interrupted", reason, dict(planned.card))


def _split(cells: Sequence[Planned], own: dict[str, float], wall: float) -> str:
    """CPU seconds by kind of work: of the cells, whenever they ran, and of this command itself.

    "start-up" is what their processes did besides: imports, and Hydra composing the settings.
    """
    split: dict[str, float] = {}
    processes = {process_name(): time.process_time()}
    for planned in cells:
        with contextlib.suppress(OSError, ValueError):  # nothing there, or damaged
            found = store.read_json(planned.folder / progress.ENVIRONMENT)
            for name, seconds in found["split"].items():
                split[name] = split.get(name, 0.0) + seconds
            process = found["process"]
            processes[process] = max(processes.get(process, 0.0), found["process_seconds"])
            if found.get("server"):
                server, imports = found["server"].split()
                processes[server] = max(processes.get(server, 0.0), float(imports))
    split |= own
    total = sum(processes.values())
    split["start-up"] = total - sum(split.values())
    science = split.get("training", 0.0) + split.get("kernels", 0.0)
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in split.items())
    return f"CPU seconds: {total:.0f} ({parts}); training and kernels {science / total:.0%}. Wall time: {wall:.0f} s."
