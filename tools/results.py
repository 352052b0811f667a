"""A folder of runs as one small file of results: python tools/results.py RUNS OUT.json 'the command that made them'.

For docs/results: the figures that the README quotes, with the command that repeats them and where they were measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench.record import Record
from bench.report.collect import collect
from bench.store import write_json

SCORES = (
    "network/test_error", "network/r2", "kernel/motion", "kernel/initial_to_infinite", "after/r2", "after/skill",
    "initial/r2", "initial/skill", "infinite_ntk/r2", "infinite_ntk/skill", "infinite_ntk/relative_l2",
    "linearised/relative_l2", "features/skill", "laplace/skill", "agop_laplace/skill", "labels/r2",
)  # fmt: skip
CARD = ("task", "n_train", "n_test", "model", "readout", "width", "richness", "tolerance", "seeds", "members_scored")


def results(runs: Path, command: str) -> dict[str, Any]:
    """Where and with what the runs were made, and every cell's main scores with errors and counts."""
    collected = collect(runs)
    environments = list(collected.environments.values())
    where = {
        key: sorted({str(environment.get(key)) for environment in environments})
        for key in ("processor", "device", "torch", "python", "git_sha", "git_dirty")
    }
    cpu_seconds = sum(float(environment["cpu_seconds"]) for environment in environments)
    return {"command": command, "measured_on": where, "cpu_seconds_of_the_cells": round(cpu_seconds, 1),
            "cells": [_cell(record) for record in collected.records]}  # fmt: skip


def _cell(record: Record) -> dict[str, Any]:
    scores = {
        name: {"value": float(f"{score.value:.4g}"), "standard_error": float(f"{score.standard_error:.2g}"),
               "n": score.n_seeds}
        for name in SCORES
        if (score := record.score(name)) is not None
    }  # fmt: skip
    return {**{key: record.card.get(key) for key in CARD}, "status": record.status, "scores": scores}


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    write_json(Path(sys.argv[2]), results(Path(sys.argv[1]), sys.argv[3]))
