"""A folder of runs as one small file of results: python tools/results.py RUNS OUT.json 'the command that made them'.

For docs/results: the figures that the README quotes, with the command that repeats them and where they were measured.
Cells of the main job with their main scores, and studies with all of theirs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench.record import Record, Score
from bench.report.collect import collect
from bench.store import read_json, read_record, write_json

FOLDER = "studies"  # of a folder of runs
SCORES = (
    "network/test_error", "network/r2", "kernel/motion", "kernel/initial_to_infinite", "after/r2", "after/skill",
    "initial/r2", "initial/skill", "infinite_ntk/r2", "infinite_ntk/skill", "infinite_ntk/relative_l2",
    "linearised/relative_l2", "features/skill", "laplace/skill", "agop_laplace/skill", "labels/r2",
)  # fmt: skip
CARD = ("task", "n_train", "n_test", "model", "readout", "width", "richness", "tolerance", "seeds", "members_scored")


def results(runs: Path, command: str) -> dict[str, Any]:
    """Where and with what the runs were made, and every cell's and study's scores with errors and counts."""
    studies = [path.parent for path in sorted((runs / FOLDER).glob("*/record.json"))]
    environments = [read_json(path) for folder in studies for path in folder.glob("environment.json")]
    found: dict[str, Any] = {"command": command}
    if studies:
        found["studies"] = [_study(read_record(folder)) for folder in studies]
    if not studies or any(path.parent not in studies for path in runs.glob("*/record.json")):
        collected = collect(runs)
        environments += list(collected.environments.values())
        found["cells"] = [_cell(record) for record in collected.records]
    found["measured_on"] = {
        key: sorted({str(environment.get(key)) for environment in environments})
        for key in ("processor", "device", "torch", "python", "git_sha", "git_dirty")
    }
    found["cpu_seconds"] = round(sum(float(environment["cpu_seconds"]) for environment in environments), 1)
    if studies:
        found["cpu_seconds"] = round(sum(float(read_record(folder).card["seconds"]) for folder in studies), 1)
    return found


def _study(record: Record) -> dict[str, Any]:
    card = {key: value for key, value in record.card.items() if key not in ("seconds", "code", "text", "panels")}
    return {**card, "status": record.status, "scores": {score.name: _score(score) for score in record.scores}}


def _cell(record: Record) -> dict[str, Any]:
    scores = {name: _score(score) for name in SCORES if (score := record.score(name)) is not None}
    return {**{key: record.card.get(key) for key in CARD}, "status": record.status, "scores": scores}


def _score(score: Score) -> dict[str, Any]:
    return {"value": float(f"{score.value:.4g}"), "standard_error": float(f"{score.standard_error:.2g}"),
            "n": score.n_seeds}  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    write_json(Path(sys.argv[2]), results(Path(sys.argv[1]), sys.argv[3]))
