"""What lies on disk, read once: records, their environments, and sentences about what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.record import Record
from bench.report.studies import cell_order
from bench.store import read_json, read_record

_NOT_A_RUN = {"wandb"}  # W&B keeps its own folder beside the runs


@dataclass(frozen=True)
class Collected:
    """The runs of one folder.

    Attributes:
        records: in the order of the tables: by task, model, width, richness.
        environments: record name -> the flat content of ``environment.json``; absent where the run left none.
        damaged: folder -> the sentence that says what is wrong with it.
        unfinished: folders that hold no record yet.
    """

    records: tuple[Record, ...]
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """One sentence for everything that is not done: why a number is missing or carries less than it seems."""
        sentences = [
            f"{record.name}: {record.status}: {record.reason or 'no reason was recorded'}"
            for record in self.records
            if record.status != "done"
        ]
        sentences += [f"{name}: damaged: {sentence}" for name, sentence in self.damaged.items()]
        return sentences + [f"{name}: unfinished: it holds no record.json yet" for name in self.unfinished]

    @property
    def warnings(self) -> list[str]:
        """Whether the numbers come from one state of the code."""
        shas = sorted({str(e["git_sha"]) for e in self.environments.values() if e.get("git_sha")})
        dirty = sorted(name for name, e in self.environments.items() if e.get("git_dirty"))
        sentences = []
        if len(shas) > 1:
            named = ", ".join(sha[:10] for sha in shas)
            sentences.append(f"These runs mix {len(shas)} git commits ({named}): numbers may differ for that reason.")
        if dirty:
            some = f"{len(dirty)} of {len(self.environments)} runs, e.g. {dirty[0]}"
            sentences.append(f"Made from a working tree with changes that were not committed: {some}.")
        return sentences


def collect(runs: Path) -> Collected:
    """Read every run folder below ``runs``. A damaged one becomes a sentence, never an exception.

    Raises:
        ValueError: ``runs`` is no folder, or holds no run (one sentence).
    """
    if not runs.is_dir():
        raise ValueError(
            f"There is no folder {runs}: name the folder of runs by runs=DIR, or make one: python -m bench."
        )
    folders = [f for f in sorted(runs.iterdir()) if f.is_dir() and f.name[0] != "." and f.name not in _NOT_A_RUN]
    if not folders:
        raise ValueError(f"The folder {runs} holds no runs: make some by python -m bench.")
    records: list[Record] = []
    environments: dict[str, Mapping[str, Any]] = {}
    damaged: dict[str, str] = {}
    unfinished: list[str] = []
    for folder in folders:
        if not (folder / "record.json").exists():
            unfinished.append(folder.name)
            continue
        try:
            record = read_record(folder)
            environment = folder / "environment.json"
            content = read_json(environment) if environment.exists() else {}
        except (ValueError, TypeError, KeyError, OSError) as error:
            damaged[folder.name] = " ".join(str(error).split()).replace(str(runs), runs.name) or type(error).__name__
            continue
        records.append(record)
        if isinstance(content, dict) and content:
            environments[record.name] = content
    records.sort(key=cell_order)
    return Collected(tuple(records), environments, damaged, tuple(unfinished))
