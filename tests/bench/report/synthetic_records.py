"""Records with known content, for the tests of the report: no networks, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import Record, Score, summarise
from bench.report.studies import Study
from bench.store import write_json, write_record

SEEDS = (0, 0, 0, 1, 1, 1)  # the data draw of six members, three inits each


def record(
    scores: Sequence[Score] = (),
    width: int = 64,
    richness: float | str = 1.0,
    task: str = "staircase",
    status: str = "done",
    reason: str = "",
    unavailable: Mapping[str, str] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    **card: Any,
) -> Record:
    name = f"{task}-mlp-w{width}-{richness}"
    shared = {"task": task, "model": "mlp", "width": width, "richness": richness, "n_train": 20, "n_test": 40}
    shared |= {"gamma": 2.0, "base": "init", "targets": ["y", "self"], "ridge": 0.0, "tolerance": 1e-4, "t": 31.25}
    shared |= {"seeds": {"data": 2, "init": 3}, "unfinished": False}
    return Record(name, status, reason, {**shared, **card}, tuple(scores), unavailable or {}, arrays or {})


def score(name: str, value: float, error: float = 0.01, n: int = 6, **bounds: float) -> Score:
    return Score(name, value, error, n, bounds.get("ceiling"), bounds.get("floor"), (value,) * n)


def study(records: Sequence[Record]) -> Study:
    return Study("a study", tuple(records))


def full_record(rng: np.random.Generator, width: int, richness: float | str, task: str = "staircase") -> Record:
    """What a finished cell leaves: every score and array that the report knows, with random content."""
    values = []
    for predictor in ("after", "initial", "infinite_ntk", "infinite_nngp", "linearised", "laplace", "agop_laplace"):
        for metric in ("r2", "skill", "relative_l2", "error_correlation", "class_agreement", "test_error"):
            values.append(summarise(f"{predictor}/{metric}", list(rng.uniform(0.1, 0.99, 6)), SEEDS, 0.97, 0.3))
    amount = 0.05 if richness == "ntk" else float(richness)
    for name in ("labels/r2", "network/test_error", "network/r2", "after_other_seed/r2", "kernel/distance"):
        values.append(summarise(name, list(rng.uniform(0.1, 0.99, 6)), SEEDS))
    values.append(summarise("kernel/motion", list(amount * 3 * rng.uniform(0.9, 1.1, 6)), SEEDS))
    values.append(summarise("kernel/initial_to_infinite", list(width**-0.5 * rng.uniform(0.9, 1.1, 6)), SEEDS))
    loss = np.tile(np.geomspace(1, 1e-4, 8), (6, 1))
    y = np.stack([np.sin(np.arange(40.0) + draw)[:, None] for draw in (0, 1)])
    arrays = {
        "snapshot_loss": loss,
        "snapshot_time": 1 / loss,
        "loss": loss,
        "loss_time": 1 / loss,
        "f_test": y[list(SEEDS)] + 0.1 * rng.standard_normal((6, 40, 1)),
        "y_test": y,
        "member_data": np.array(SEEDS),
        "member_init": np.array([0, 1, 2, 0, 1, 2]),
    }
    for name in ("r2", "skill", "test_error", "motion", "distance", "alignment", "alignment_held_out",
                 "network_test_error"):  # fmt: skip
        arrays[f"snapshot_{name}"] = rng.uniform(0.05, 0.95, (6, 8))
    for name in ("initial", "after", "infinite"):
        rows = 2 if name == "infinite" else 6
        arrays[f"spectrum_{name}"] = np.sort(rng.uniform(1, 2, (rows, 20)) * np.arange(1, 21.0) ** -2)[:, ::-1]
    return record(values, width, richness, task, arrays=arrays)


def write_runs(folder: Path, records: Sequence[Record]) -> Path:
    """The records as runs on disk, below ``folder``."""
    for one in records:
        write_record(folder / one.name, one)
        write_json(folder / one.name / "environment.json", {"git_sha": "a" * 40, "git_dirty": False, "split": {}})
    return folder


def grid_of_records(tasks: Sequence[str], widths: Sequence[int], richnesses: Sequence[float | str]) -> list[Record]:
    rng = np.random.default_rng(0)
    return [full_record(rng, w, r, task) for task in tasks for w in widths for r in richnesses]
