"""What lies on disk, read once: records, their environments, and sentences about what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.record import STATUSES, Record
from bench.report.studies import cell_order
from bench.store import read_json, read_record
from bench.studies.study import FOLDER

_NOT_A_RUN = {"wandb", FOLDER}  # W&B keeps its own folder beside the runs, and studies have theirs
_BEGUN = ("config.yaml", "record.json")
"""One of them is in the folder of every run; networks alone were trained for something else, as by bench.diagnose."""


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


def collect(runs: Path, leave_out: Path | None = None) -> Collected:
    """Read every run folder below ``runs``. A damaged one becomes a sentence, never an exception.

    Args:
        runs: the folder of runs.
        leave_out: a folder that is no run wherever it lies: that of the report.

    Raises:
        ValueError: ``runs`` is no folder, cannot be read, or holds no run (one sentence).
    """
    folders = [f for f in _folders(runs) if leave_out is None or f.resolve() != leave_out.resolve()]
    if not folders:
        raise ValueError(f"The folder {runs} holds no runs: make some by python -m bench.")
    records: list[Record] = []
    environments: dict[str, Mapping[str, Any]] = {}
    damaged: dict[str, str] = {}
    unfinished: list[str] = []
    for folder in folders:
        try:
            if not (folder / "record.json").exists():
                unfinished.append(folder.name)
                continue
            record = _checked(read_record(folder))
            environment = folder / "environment.json"
            content = read_json(environment) if environment.exists() else {}
        except (ValueError, OSError) as error:
            damaged[folder.name] = " ".join(str(error).split()).replace(str(runs), runs.name)
            continue
        except (TypeError, KeyError, AttributeError):
            damaged[folder.name] = "record.json is not what a run writes: delete it, and the run makes it again."
            continue
        records.append(record)
        if isinstance(content, dict) and content:
            environments[record.name] = content
    records.sort(key=cell_order)
    return Collected(tuple(records), environments, damaged, tuple(unfinished))


def _folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        raise ValueError(
            f"There is no folder {runs}: name the folder of runs by runs=DIR, or make one: python -m bench."
        )
    try:
        found = sorted(runs.iterdir())
    except OSError as error:
        raise ValueError(f"The folder {runs} cannot be read ({error.strerror}).") from error
    folders = [folder for folder in found if folder.name[0] != "." and folder.name not in _NOT_A_RUN]
    return [folder for folder in folders if any((folder / file).exists() for file in _BEGUN)]


def _checked(record: Record) -> Record:
    """Raises: TypeError where a field is not of its kind: JSON has no types."""
    numbers = [number for score in record.scores for number in (score.value, score.standard_error)]
    texts = [record.name, record.status, record.reason, *(score.name for score in record.scores)]
    right = isinstance(record.card, dict) and isinstance(record.unavailable, dict)
    right &= all(isinstance(text, str) for text in texts)
    right &= all(isinstance(number, int | float) for number in numbers)
    if not right or record.status not in STATUSES:
        raise TypeError(record.name)
    return record
