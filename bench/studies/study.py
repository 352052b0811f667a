"""A study: a function of settings that leaves a ``Record``. What was run once is read from disk."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import store
from bench.record import Record, Score

ROOT = Path(__file__).resolve().parents[2]


def result(
    scores: tuple[Score, ...] = (), arrays: Mapping[str, Any] | None = None, card: Mapping[str, Any] | None = None
) -> Record:
    """What a study function returns; its name and seconds are filled in where it is kept."""
    return Record("", "done", "", dict(card or {}), tuple(scores), {}, dict(arrays or {}))


@dataclass(frozen=True)
class Request:
    """One study to be run.

    Attributes:
        study: a function at the top of a module, ``settings -> Record``. Arrays have a leading seed axis.
        settings: its one argument, a frozen dataclass of plain values, the seeds among them.
    """

    study: Callable[[Any], Record]
    settings: Any

    @property
    def name(self) -> str:
        """The folder's: ``<study>-<hash of the settings>``."""
        decided = [self.study.__module__, self.study.__qualname__, store.plain(self.settings)]
        return f"{self.study.__name__}-{store.settings_hash(decided)}"


def find(request: Request, folder: Path, code: str = "") -> Record | None:
    """The study's record, if it is on disk and of this code."""
    try:
        record = store.read_record(folder / request.name)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none yet, or damaged: made again
        return None
    return record if record.card.get("code", "") == code else None


def obtain(request: Request, folder: Path, code: str = "") -> Record:
    """The study's record: read where it is on disk, else run and written. ``card["seconds"]``: CPU, when it ran.

    Args:
        folder: below which the study has a folder of its own, held by an OS lock while it runs.
        code: what else must be the same for a record to be read; claims pass ``fingerprint()``, so that no result of
            older code is taken for the present one's.

    Raises:
        Exception: whatever the study raises; nothing is kept then.
    """
    place = folder / request.name
    with store.lock(place):
        if found := find(request, folder, code):
            return found
        (place / "record.json").unlink(missing_ok=True)
        (place / "arrays.npz").unlink(missing_ok=True)
        store.write_yaml(place / "config.yaml", {"study": request.study.__qualname__, **store.plain(request.settings)})
        started = time.process_time()
        record = request.study(request.settings)
        card = {**record.card, "seconds": time.process_time() - started, "code": code}
        store.write_record(place, replace(record, name=request.name, card=store.plain(card)))
        return store.read_record(place)


@functools.cache
def fingerprint() -> str:
    """A hash of the suite's own source: it changes with every edit that could change a result."""
    digest = hashlib.sha256()
    for package in ("bench", "models", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
