"""A kernel in a file that is filled tile by tile, and finished by a later process where one was stopped."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import filelock
import numpy
import torch

T = TypeVar("T")

FINISHED = b'{"complete": true}\n'


class TileFile:
    """A tensor in a .npy file that is filled tile by tile, and goes on where an earlier process was stopped.

    Beside it `<name>.json` holds a line that names what the file is (`fingerprint`), those of the settings that it was
    begun with, and one for each finished tile. `tensor` is mapped to the file. In a `with` statement, which holds the
    operating system's lock on an unfinished file: it goes with the process. Raises ValueError if another process has
    it, if the file there is of another fingerprint, shape or dtype, or damaged, and if there is no room for it.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, fingerprint: str) -> None:
        self.path = path
        self._log = path.with_name(path.name + ".json")
        self._head: dict[str, object] = {"fingerprint": fingerprint, "shape": list(shape), "dtype": str(dtype)}
        self._tiles: set[tuple[int, int]] = set()
        self._settings: dict[str, Any] = {}
        self.complete = False
        numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        size = math.prod(shape) * numpy_dtype.itemsize
        self._lock = filelock.FileLock(path.with_name(path.name + ".lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._finished():
                self._lock.acquire(timeout=0)
            if not self._read():
                self._begin(shape, numpy_dtype)
            self._map = self._open(shape, numpy_dtype)
        except filelock.Timeout as error:
            raise ValueError(f"{path} is being written by another process: wait, or name another file.") from error
        except OSError as error:
            self._lock.release()
            raise ValueError(f"The {size / 1e9:.3g} GB of {path} cannot be written: {error.strerror}.") from error
        except BaseException:  # whose traceback, in a notebook, would keep this object and with it the lock
            self._lock.release()
            raise
        self.tensor = torch.from_numpy(self._map)

    def __enter__(self) -> TileFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()
        if self.complete:  # nobody will write it again
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _open(self, shape: tuple[int, ...], dtype: numpy.dtype) -> numpy.memmap:
        size = self.path.stat().st_size  # a file that is too short would be made longer
        try:
            found = numpy.load(self.path, mmap_mode="r+")
        except (ValueError, EOFError, OSError) as error:
            raise self._unusable("is damaged") from error
        if found.shape != shape or found.dtype != dtype or found.offset + found.nbytes != size:
            raise self._unusable("is damaged")
        return found

    def _unusable(self, what: str) -> ValueError:
        return ValueError(f"{self.path} {what}: remove it with {self._log.name}, or name another file.")

    def _begin(self, shape: tuple[int, ...], dtype: numpy.dtype) -> None:
        """The file appears under its name when it is whole; its disk space is taken now, for a mapped file that finds
        none later kills the process."""
        part = self.path.with_name(self.path.name + ".part")
        try:
            self._append(self._head, mode="w")
            numpy.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape).flush()
            with part.open("r+b") as file:
                _take_space(file.fileno(), part.stat().st_size)
            part.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _finished(self) -> bool:
        return self.path.exists() and self._log.exists() and self._log.read_bytes().endswith(FINISHED)

    def _read(self) -> bool:
        if not self.path.exists():
            return False
        text = self._log.read_bytes() if self._log.exists() else b""
        whole = text.rfind(b"\n") + 1
        try:
            entries = [dict(json.loads(line)) for line in text[:whole].splitlines()]
        except (ValueError, TypeError) as error:
            raise self._unusable("has a damaged list of tiles") from error
        if not entries or entries[0] != self._head:
            raise self._unusable("holds something else")
        for entry in entries[1:]:
            if "tile" in entry:
                self._tiles.add(tuple(entry["tile"]))
            elif "complete" in entry:
                self.complete = True
            else:
                self._settings |= entry
        if whole < len(text):  # a line without its end was being written when the process was stopped
            os.truncate(self._log, whole)
        return True

    def _append(self, entry: Mapping[str, object], mode: str = "a") -> None:
        with self._log.open(mode) as log:
            log.write(json.dumps(entry) + "\n")

    def settle(self, name: str, value: T) -> T:
        """The setting that the file was begun with, else `value`, which it is then begun with: what another process
        must know in order to compute the tiles that are left just as this one would."""
        if name not in self._settings:
            self._settings[name] = value
            self._append({name: value})
        found: T = self._settings[name]
        return found

    def holds(self, rows: slice, cols: slice) -> bool:
        return (rows.start, cols.start) in self._tiles

    def add(self, rows: slice, cols: slice) -> None:
        self._map.flush()  # the tile is there before the line that says so
        self._append({"tile": [rows.start, cols.start]})

    def finish(self) -> None:
        self.complete = True
        self._append({"complete": True})


def _take_space(file: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # else the file system cannot reserve
            raise
