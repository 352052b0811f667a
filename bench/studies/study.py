"""A study: a function of settings that leaves a ``Record``. What was run once is read from disk."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import os
import time
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from bench import store
from bench.record import Record, Score

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "studies"
"""Below the folder of runs."""


def result(
    scores: tuple[Score, ...] = (),
    arrays: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    *,
    unfinished: int = 0,
    networks: int = 0,
) -> Record:
    """What a study function returns; its name and seconds are filled in where it is kept.

    Args:
        unfinished: how many of its ``networks`` did not reach the tolerance, and so are in no number: the record is
            "unconverged" and says so.
    """
    status, reason = "done", ""
    if unfinished:
        status, reason = "unconverged", f"{unfinished} of {networks} networks did not reach tolerance."
    return Record("", status, reason, dict(card or {}), tuple(scores), {}, dict(arrays or {}))


@dataclass(frozen=True)
class Request:
    """One study to be run.

    Attributes:
        study: a function at the top of a module, ``settings -> Record``. Arrays have a leading seed axis.
        settings: its one argument, a frozen dataclass of plain values, the seeds among them.
    """

    study: Callable[[Any], Record]
    settings: Any

    def __post_init__(self) -> None:
        name = getattr(self.study, "__qualname__", "")
        if not name.isidentifier():  # its name must tell it from others, and worker processes must find it
            raise ValueError(f"A study must be a function at the top of a module, not {name or self.study!r}.")

    @property
    def name(self) -> str:
        """The folder's: ``<study>-<hash of the settings>``."""
        decided = [self.study.__module__, self.study.__qualname__, store.plain(self.settings)]
        return f"{self.study.__name__}-{store.settings_hash(decided)}"


def find(request: Request, folder: Path, code: str = "") -> Record | None:
    """The study's record, if it is on disk and of this code."""
    try:
        record = store.read_record(folder / request.name)
        return record if record.card.get("code", "") == code else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or damaged: made again
        return None


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
def fingerprint(own: Path | None = None) -> str:
    """A hash of the suite's own source, its configuration, and the versions of what computes: torch, NumPy and SciPy.

    It changes with what could change a result.

    ``own``: a folder of a user's studies; all Python files in and below it count, too, but for hidden files and
    folders and virtual environments.
    """
    versions = f"torch {torch.__version__} numpy {np.__version__} scipy {scipy.__version__}"
    digest = hashlib.sha256(versions.encode())
    for package in ("bench", "models", "tasks", "conf"):
        _add_sources(digest, ROOT, ROOT / package, (".py", ".yaml"))
    if own is not None:
        _add_sources(digest, own, own)
    return digest.hexdigest()[:16]


def _add_sources(digest: hashlib._Hash, root: Path, folder: Path, endings: tuple[str, ...] = (".py",)) -> None:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f[0] != "." and not (Path(parent, f) / "pyvenv.cfg").exists())
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix in endings and name[0] != "." and path.is_file():  # .#name.py is an editor's lock
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())


def make_settings(study: Callable[[Any], Record], values: Mapping[str, Any]) -> Any:
    """The study's settings from plain values, as a config file has them; what is not named keeps its default.

    Raises:
        ValueError: no study, a name that it does not take, a value of another type, or one it refuses (one sentence).
    """
    hints = [hint for name, hint in typing.get_type_hints(study).items() if name != "return"]
    kind = hints[0] if len(hints) == 1 else None
    if not dataclasses.is_dataclass(kind) or not isinstance(kind, type):
        raise ValueError(f"_target_: {study.__qualname__} is no study, a function of one dataclass of settings.")
    types_of = typing.get_type_hints(kind)
    for name in values:
        if name not in types_of:
            near = difflib.get_close_matches(name, types_of, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{name} is unknown.{hint} Available: {', '.join(types_of)}.")
    given = {name: _conform(name, value, types_of[name]) for name, value in values.items()}
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in given.items():
        if value == () and defaults[name] != ():
            raise ValueError(f"{name} must be a list of at least one.")
    seeds = given.get("seeds", ())
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from each other, not {list(seeds)}: errors are of independent ones.")
    made: Any = kind(**given)
    return made


def _conform(name: str, value: Any, kind: Any) -> Any:
    """The value as this type; whole numbers pass for floats, and lists for tuples."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        kinds = [one for one in inner if one is not types.NoneType]
        return None if value is None and types.NoneType in inner else _conform(name, value, kinds[0])
    if origin is typing.Literal:
        if value not in inner:
            raise ValueError(f"{name} must be one of {', '.join(map(str, inner))}, not {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, not {value!r}.")
        kinds = [inner[0]] * len(value) if inner[1:] == (Ellipsis,) else list(inner)
        if len(kinds) != len(value):
            raise ValueError(f"{name} must be a list of {len(kinds)}, not {value!r}.")
        return tuple(_conform(name, one, sort) for one, sort in zip(value, kinds, strict=True))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool) or value != value:  # nan is no number
        raise ValueError(f"{name} must be {words.get(kind, str(kind))}, not {value!r}.")
    return float(value) if kind is float else value
