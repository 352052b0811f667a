"""One cell of the main job: train its members, ask every comparison, leave a Record. What is on disk is not redone."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import store
from bench.compare import Comparison, UnavailableError, unfinished
from bench.moment import Watch
from bench.record import Record, Score
from bench.savepoint import Interrupted, Savepoint
from bench.train import Trainer, part_of
from bench.trained import History, Member, Trained, join, members
from tasks.task import Task

Watcher = Callable[[Sequence[Member]], Watch]
"""Who watches the training of a batch of members."""

HISTORY = tuple(field.name for field in fields(History))


@dataclass(frozen=True)
class Cell:
    """What decides a cell's result, built and checked.

    Attributes:
        name: the folder below ``runs``, ``<task>-<model>-w<width>-<hash>``; the hash is of task, model and trainer.
        settings: the plain settings behind it, written as ``config.yaml``.
        tasks: one a data draw.
        card: what the settings alone say of the result card.
    """

    name: str
    settings: Mapping[str, Any]
    tasks: Sequence[Task]
    model: nn.Module
    trainer: Trainer
    inits: int
    comparisons: Sequence[Comparison]
    card: Mapping[str, Any]

    @property
    def members(self) -> list[Member]:
        return members(len(self.tasks), self.inits)

    @property
    def work(self) -> float:
        """Of training, relative to other cells: multiplications a step."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return float(parameters * self.tasks[0].n_train * len(self.members))


def finished(settings: Mapping[str, Any], folder: Path) -> Record | None:
    """The record of a cell of these settings that needs nothing more, else None."""
    try:
        record = store.read_record(folder) if (folder / "record.json").exists() else None
        same = record is not None and store.read_yaml(folder / "config.yaml") == store.plain(settings)
    except (OSError, ValueError, KeyError, TypeError):  # damaged: made again
        return None
    return record if same and record is not None and record.status not in ("failed", "interrupted") else None


def run(
    cell: Cell,
    folder: Path,
    progress: Callable[[float], None],
    stop: Callable[[], bool] = lambda: False,
    watch: Watcher | None = None,
) -> tuple[Record, dict[str, float]]:
    """Train what is missing, score what is missing. The record is the caller's to write, when all else is done.

    Args:
        progress: told which share of the training is done.
        stop: asked while it trains and between comparisons; True: leave the state on disk, and raise ``Interrupted``.
        watch: of the training.

    Returns:
        the record, and the CPU seconds of "training", "kernels" and "comparisons".
    """
    (folder / "record.json").unlink(missing_ok=True)
    store.write_yaml(folder / "config.yaml", cell.settings)
    started = time.process_time()
    trained = train(cell, folder / "trained", progress, stop, watch)
    trained_at = time.process_time()
    scored = trained.select([i for i, status in enumerate(trained.status) if status == "done"])
    record = compare(cell, trained, scored, folder / "scores", stop)
    kernels = scored.ntk.seconds
    return record, {
        "training": trained_at - started,
        "kernels": kernels,
        "comparisons": time.process_time() - trained_at - kernels,
    }


def train(
    cell: Cell,
    folder: Path,
    progress: Callable[[float], None],
    stop: Callable[[], bool] = lambda: False,
    watch: Watcher | None = None,
) -> Trained:
    """All members of the cell: read where their batch is complete on disk, trained where it is not.

    A batch that was stopped in the middle goes on from where it was, to the same bits on a CPU.
    """
    known = {member: read for member in cell.members if (read := _read(cell, member, folder)) is not None}
    # Members that were trained together are kept together: a batch of another size rounds differently.
    complete = {member for member, (_, batch) in known.items() if all(_find(known, name) for name in batch)}
    parts = {member: known[member][0] for member in complete}
    missing = [member for member in cell.members if member not in complete]
    share = part_of(progress, len(parts), len(missing), len(cell.members))

    def savepoint(batch: Sequence[Member]) -> Savepoint:
        return Savepoint(_state_file(folder, batch), stop=stop)

    batches = _batches(cell, missing, folder)
    parts_of = cell.trainer.parts(cell.model, cell.tasks, missing, share, savepoint, watch, batches) if missing else ()
    for fresh in parts_of:
        for i, member in enumerate(fresh.members):
            parts[member] = fresh.select([i])
            _write(parts[member], [other.name for other in fresh.members], folder / f"{member.name}.npz")
        _state_file(folder, fresh.members).unlink(missing_ok=True)
    return join([parts[member] for member in cell.members])


def _batches(cell: Cell, missing: Sequence[Member], folder: Path) -> list[list[Member]]:
    """The missing members by those that train together: as they were to when the cell was begun, since neither the
    memory that is free now nor what is done already may decide how a resumed run rounds."""
    path, names = folder / "batches.json", {member.name: member for member in missing}
    stored: list[list[str]] = []
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: made again
        stored = [[str(name) for name in batch] for batch in store.read_json(path)["batches"]]
    known = [batch for names_of in stored if (batch := [names[name] for name in names_of if name in names])]
    new = [member for member in missing if not any(member.name in batch for batch in stored)]
    if not new:
        return known
    fresh = cell.trainer.batches(cell.model, cell.tasks, new)
    store.write_json(path, {"batches": [*stored, *([member.name for member in batch] for batch in fresh)]})
    return [*known, *fresh]


def compare(cell: Cell, trained: Trained, scored: Trained, folder: Path, stop: Callable[[], bool]) -> Record:
    """Every comparison on the members that are done; the others are counted and named, never scored."""
    scores: list[Score] = []
    unavailable: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    if scored.members:
        decided = hashlib.sha256(scored.f_T.cpu().numpy().tobytes()).hexdigest()
        for comparison in cell.comparisons:
            if stop():
                raise Interrupted
            content, found = _ask(comparison, scored, folder, decided)
            scores += [store.read_score(score) for score in content["scores"]]
            arrays |= found
            if content["unavailable"]:
                unavailable[comparison.name] = content["unavailable"]
    status, reason = _status(trained)
    card = {
        **cell.card,
        "t": float(scored.times.mean()) if scored.members else None,
        "steps": int(np.mean([len(history.steps) for history in trained.history])),
        "relative_train_mse": float(trained.losses.mean()),
        "members": len(trained.members),
        "members_scored": len(scored.members),
        "unfinished": unfinished(scores),
    }
    return Record(cell.name, status, reason, store.plain(card), tuple(scores), unavailable, arrays)


def _ask(
    comparison: Comparison, trained: Trained, folder: Path, decided: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The comparison's answer, from disk where the same question was asked of the same networks."""
    path = folder / f"{comparison.name}.json"
    key = store.settings_hash([store.plain(comparison), decided, [member.name for member in trained.members]])
    with contextlib.suppress(FileNotFoundError, ValueError):  # damaged: asked again
        content = store.read_json(path)
        if content.get("key") == key:
            return content, store.read_npz(path.with_suffix(".npz")) if content["arrays"] else {}
    content = {"key": key, "scores": [], "unavailable": "", "arrays": False}
    found: dict[str, np.ndarray] = {}
    try:
        content["scores"] = [store.plain(score) for score in comparison(trained)]
        found = comparison.arrays(trained)
    except UnavailableError as reason:
        content["unavailable"] = str(reason)
    content["arrays"] = bool(found)
    if found:
        store.write_npz(path.with_suffix(".npz"), found)
    store.write_json(path, content)
    return content, found


def _status(trained: Trained) -> tuple[str, str]:
    for status, meaning in (("diverged", "diverged"), ("unconverged", "did not reach trainer.tolerance")):
        if count := trained.status.count(status):
            return status, f"{count} of {len(trained.status)} members {meaning} and are not scored."
    return "done", ""


def _write(part: Trained, batch: list[str], path: Path) -> None:
    history = part.history[0]
    arrays = {f"params/{name}": value[0].cpu().numpy() for name, value in part.params.items()}
    arrays |= {"f_0": part.f_0[0].cpu().numpy(), "f_T": part.f_T[0].cpu().numpy()}
    arrays |= {"gamma": np.array(part.gamma[0]), "status": np.array(part.status[0])}
    arrays |= {name: getattr(history, name).numpy() for name in HISTORY}
    store.write_npz(path, {**arrays, "batch": np.array(batch)})


def _read(cell: Cell, member: Member, folder: Path) -> tuple[Trained, list[str]] | None:
    """One member as it was written, and the names of its batch; None where there is none, it is damaged, or it lacks
    what older versions did not write."""
    try:
        return _restored(cell, member, store.read_npz(folder / f"{member.name}.npz"))
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _restored(cell: Cell, member: Member, arrays: Mapping[str, np.ndarray]) -> tuple[Trained, list[str]]:
    device = cell.trainer.torch_device()
    f_0, f_T = (torch.from_numpy(arrays[name]).to(device)[None] for name in ("f_0", "f_T"))
    prefix = "params/"
    trained = Trained(
        net=cell.trainer.network(cell.model),
        tasks=tuple(cell.tasks),
        members=(member,),
        params={
            name.removeprefix(prefix): torch.from_numpy(value).to(device)[None]
            for name, value in arrays.items()
            if name.startswith(prefix)
        },
        f_0=f_0,
        f_T=f_T,
        gamma=(float(arrays["gamma"]),),
        history=(History(*(torch.from_numpy(arrays[name]) for name in HISTORY)),),
        status=(str(arrays["status"]),),
    )
    return replace(trained, settings=store.plain(cell.trainer)), [str(name) for name in arrays["batch"]]


def _state_file(folder: Path, batch: Sequence[Member]) -> Path:
    return folder / f".{batch[0].name}.state"


def _find(known: Mapping[Member, Any], name: str) -> bool:
    return any(member.name == name for member in known)
