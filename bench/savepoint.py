"""Training that survives its process: its state on disk now and then, and when the process is asked to end.

The state is whole: a descent that goes on from it takes the very same steps, to the bit on a CPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import store

log = logging.getLogger(__name__)

EXIT_CODE = 75
"""Of a process that SIGTERM ended when its state was written ("try again" in sysexits.h); the same command goes on."""
SECONDS = 60.0


class Interrupted(SystemExit):
    """The process was asked to end, and what it was training is on disk. Uncaught, it ends with ``EXIT_CODE``."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@dataclass
class Savepoint:
    """Where one descent keeps its state, and when it writes it.

    Attributes:
        path: the file; it is written atomically, and removed by whoever has the result.
        seconds: between two writings.
        stop: asked every iteration; True: write, and raise ``Interrupted``.
    """

    path: Path
    seconds: float = SECONDS
    stop: Callable[[], bool] = lambda: False
    written: float = field(default_factory=time.monotonic)
    warned: bool = False

    def load(self, key: str, device: torch.device) -> dict[str, Any] | None:
        """The state there; None where there is none, it is damaged, or it is of another descent."""
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
        except Exception:  # torch.load has no error of its own for a damaged file
            return None
        return state if isinstance(state, dict) and state.get("key") == key else None

    def look(self, key: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write if it is time; where the disk does not take it, log that once, and go on training.

        Raises:
            Interrupted: the process was asked to end; the state is written (or, on a full disk, the one before it is).
        """
        stopping = self.stop()
        if stopping or time.monotonic() - self.written >= self.seconds:
            buffer = io.BytesIO()
            torch.save({**state(), "key": key}, buffer)
            try:
                store.write_bytes(self.path, buffer.getvalue())
            except OSError as error:
                if not self.warned:
                    log.warning("The state of the training was not written, and it goes on without: %s.", error)
                self.warned = True
            self.written = time.monotonic()
        if stopping:
            raise Interrupted

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def key_of(settings: object, tensors: Mapping[str, Tensor]) -> str:
    """A hash of what decides a descent: its settings, data and starting point."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM does not end the process but makes the function that is given answer True.

    In a thread that may not set signal handlers it always answers False.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
