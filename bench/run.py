"""The main job: plan every cell, hand them to Hydra's launcher, show what came out."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
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

from bench import progress, store, tracking
from bench.launch import held, is_apart, launch
from bench.plan import CONF, PlanError, Planned, build, plan
from bench.record import Record
from bench.report import text_table, write_report
from bench.studies import cell as study
from bench.train import weight_layers

PATIENCE = 5.0
"""Seconds until a folder that another process holds is skipped: the workers of a killed command need some to end."""


def main(arguments: Sequence[str]) -> int:
    """``python -m bench``. Returns the exit code: 0, 1 (a cell is not done) or 2 (wrong settings, nothing trained)."""
    arguments = list(arguments) or ["experiment=after_kernel"]
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if a not in flags]
    if set(flags) - {"-m", "--multirun"}:  # --help, --cfg job: Hydra's own
        _hydra(arguments)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread a process, and the same bits on every machine
    started = time.perf_counter()
    try:
        cells = plan(overrides, multirun=bool(flags))
    except PlanError as error:
        print(f"widebench: {error}", file=sys.stderr)
        return 2
    planned = time.process_time()
    missing = [
        p
        for p in cells
        if p.config.force or not (study.finished(p.settings, p.folder) and _is_tracked(p.config, p.folder))
    ]
    if missing:
        with progress.watch([progress.Job(p.folder, p.work) for p in missing]):
            try:
                launch(missing, overrides, flags, _hydra)
            except RuntimeError as error:
                print(f"widebench: {error}", file=sys.stderr)
    records = [_read(p) for p in cells]
    print(text_table(records))
    begun = time.process_time()
    _report(cells[0].config)
    own = {"planning": planned, "report": time.process_time() - begun}
    print(_split(cells, own, time.perf_counter() - started))
    return int(any(record.status != "done" for record in records))


def _report(config: DictConfig) -> None:
    """The page and the tables of everything in ``runs``."""
    if config.report is None:
        return
    try:
        report = write_report(Path(config.runs), Path(config.report))
    except (OSError, ValueError) as error:
        print(f"widebench: no report: {error}", file=sys.stderr)
        return
    print(f"Report: {report.files[0]}")


def _hydra(arguments: Sequence[str]) -> None:
    before, sys.argv = sys.argv, ["python -m bench", *arguments]
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = before


def job(config: DictConfig) -> None:
    """One cell, in whatever process the launcher gives it. Never raises: what went wrong is in the record."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    cell = build(config)
    folder = Path(config.runs) / cell.name
    if is_apart(folder):
        return
    try:
        with store.lock(folder).acquire(timeout=PATIENCE):
            if config.force:
                _clear(folder)
            if record := study.finished(cell.settings, folder):
                if not _is_tracked(config, folder):
                    _track(config, record, folder)
            else:
                _run(config, cell, folder, started)
    except filelock.Timeout:
        print(f"{cell.name}: another process is at work on it; skipped.", flush=True)
    except OSError as error:  # a full disk: there is nowhere to record it
        print(f"{cell.name}: failed: {error}", file=sys.stderr, flush=True)


def _run(config: DictConfig, cell: study.Cell, folder: Path, started: float) -> None:
    """Train and score, then W&B and the environment, and the record last: what has one lacks nothing."""
    seconds: dict[str, float] = {}
    record = Record(cell.name, "interrupted", "Interrupted.", dict(cell.card))
    report = progress.reporter(folder)
    report(0.0)  # begun
    try:
        record, seconds = study.run(cell, folder, report)
        begun = time.process_time()
        _track(config, record, folder)
        seconds["tracking"] = time.process_time() - begun
    except Exception as error:  # one cell's failure must not end the sweep
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        record = Record(cell.name, "failed", reason, dict(cell.card))
    finally:
        progress.clear(folder)
        environment = _environment(cell, seconds, time.perf_counter() - started)
        store.write_json(folder / progress.ENVIRONMENT, environment)
        store.write_record(folder, record)


def _track(config: DictConfig, record: Record, folder: Path) -> None:
    settings: Any = OmegaConf.to_container(config, resolve=True)
    tracking.track(record, mode=config.tracking.mode, project=config.tracking.project, group=config.name,
                   run_id=folder.name.rpartition("-")[2], config=settings, folder=folder)  # fmt: skip


def _is_tracked(config: DictConfig, folder: Path) -> bool:
    return config.tracking.mode == "disabled" or any(folder.glob("wandb/*run-*"))


def _clear(folder: Path) -> None:
    for path in [*folder.glob("*.json"), *folder.glob("*.npz"), *folder.glob("trained/*"), *folder.glob("scores/*")]:
        path.unlink()


def _read(planned: Planned) -> Record:
    try:
        return store.read_record(planned.folder)
    except (FileNotFoundError, ValueError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = "Another process is at work on it." if held(planned.folder) else "It left no record."
        return Record(planned.name, "interrupted", reason, dict(planned.card))


def _split(cells: Sequence[Planned], own: dict[str, float], wall: float) -> str:
    """CPU seconds by kind of work: of the cells, whenever they ran, and of this command itself.

    "start-up" is what their processes did besides: imports, and Hydra composing the settings.
    """
    split: dict[str, float] = {}
    processes = {_process(): time.process_time()}
    for planned in cells:
        with contextlib.suppress(OSError, ValueError):  # nothing there, or damaged
            environment = store.read_json(planned.folder / progress.ENVIRONMENT)
            for name, seconds in environment["split"].items():
                split[name] = split.get(name, 0.0) + seconds
            process = environment["process"]
            processes[process] = max(processes.get(process, 0.0), environment["process_seconds"])
    split |= own
    total = sum(processes.values())
    split["start-up"] = total - sum(split.values())
    science = split.get("training", 0.0) + split.get("kernels", 0.0)
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in split.items())
    return f"CPU seconds: {total:.0f} ({parts}); training and kernels {science / total:.0%}. Wall time: {wall:.0f} s."


def _process() -> str:
    return f"{platform.node()}:{os.getpid()}"


@functools.cache
def _git(*arguments: str) -> str:
    """What git says of this checkout, asked once a process; empty where there is none."""
    done = subprocess.run(["git", "-C", str(CONF), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _environment(cell: study.Cell, split: dict[str, float], wall: float) -> dict[str, Any]:
    device = cell.trainer.torch_device()
    cuda = device.type == "cuda"
    return {
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "processor": _processor(),
        "wall_seconds": wall,
        "cpu_seconds": sum(split.values()),
        "split": split,
        "process": _process(),
        "process_seconds": time.process_time(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "flops_per_step": _flops_per_step(cell),
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        names = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return next(names).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _flops_per_step(cell: study.Cell) -> int:
    """Of one member, its matrix products: a forward pass over the training set, and twice that for the way back."""
    flops = 0

    def count(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal flops
        weight = layer.get_parameter("weight")
        flops += 2 * weight.numel() * output[0].numel() // weight.shape[0]

    handles = [layer.register_forward_hook(count) for layer in weight_layers(cell.model)]
    with torch.no_grad():
        cell.model(cell.tasks[0].x_train[:1].float())
    for handle in handles:
        handle.remove()
    return 3 * cell.tasks[0].n_train * flops
