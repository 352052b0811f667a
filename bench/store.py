"""The one path to disk: atomic writes, content hashes, run locks. Knows nothing but plain data."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import yaml

from bench.record import SCHEMA, Record, Score


def plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences, numpy scalars and paths as what JSON can hold; nan and inf become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def settings_hash(settings: Any, length: int = 10) -> str:
    """A hash of settings that does not depend on the order of their keys."""
    text = json.dumps(plain(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none of it: whatever happens, ``path`` never holds a part.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def append_line(path: Path, value: Any) -> None:
    """Add a line of JSON; half a line at the end, of a process that was killed, stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(plain(value)).encode() + b"\n")


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_lines(path: Path) -> list[Any]:
    """What ``append_line`` wrote, in order; none where there is no file. What is no JSON is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def check_writable(option: str, path: Path) -> None:
    """Raises: ValueError (one sentence) where a file could not be written there; leaves what is there as it is."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror}.") from error


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Raises: ValueError (one sentence) where the file is no JSON."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it, and the run makes it again.") from error


def write_yaml(path: Path, value: Any) -> None:
    write_text(path, yaml.safe_dump(plain(value), sort_keys=True))


def read_yaml(path: Path) -> Any:
    """Raises: ValueError (one sentence) where the file is no YAML."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: delete it, and the run makes it again.") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays; the same arrays give the same bytes (no time stamps inside)."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Raises: ValueError (one sentence) where the file is truncated or no ``.npz``."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError, KeyError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is damaged ({error}): delete it, and the run makes it again.") from error


def lock(folder: Path) -> filelock.BaseFileLock:
    """The operating system's lock on a run folder, not yet acquired; it goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".lock")


def held(folder: Path) -> bool:
    """Whether a process has the lock on a run folder."""
    if not (folder / ".lock").exists():
        return False
    own = lock(folder)
    try:
        own.acquire(timeout=0)
    except filelock.Timeout:
        return True
    own.release()
    return False


def write_record(folder: Path, record: Record) -> None:
    """Arrays first, ``record.json`` last: a folder with a record is complete."""
    if record.arrays:
        write_npz(folder / "arrays.npz", record.arrays)
    content = plain(replace(record, arrays={})) | {"arrays": sorted(record.arrays)}
    write_json(folder / "record.json", content)


def read_record(folder: Path) -> Record:
    """Raises: ValueError (one sentence) where the record is damaged or of another schema, FileNotFoundError if none."""
    content = read_json(folder / "record.json")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        path = folder / "record.json"
        raise ValueError(f"{path} is not a record of schema {SCHEMA}: run its cell again with force=true.")
    content["scores"] = tuple(read_score(score) for score in content["scores"])
    path = folder / "arrays.npz"
    arrays = read_npz(path) if path.exists() else {}
    if lost := set(content.pop("arrays", ())) - set(arrays):
        raise ValueError(f"{path} lacks {', '.join(sorted(lost))}: run its cell again with force=true.")
    return Record(**content, arrays=arrays)


def read_score(content: Mapping[str, Any]) -> Score:
    """The score that ``plain`` made this of."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return Score(
        content["name"],
        number(content["value"]),
        number(content["standard_error"]),
        content["n_seeds"],
        content["ceiling"],
        content["floor"],
        tuple(number(value) for value in content["per_member"]),
    )
