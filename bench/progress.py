"""How far a sweep is: each cell's process leaves a number in its folder, the command's own process adds them up.

Files, because the launchers run cells in other processes and on other machines.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import store

FILE = ".progress"
DONE = "record.json"
"""Written last by a cell that ran, whether it succeeded or not, and removed first."""
ENVIRONMENT = "environment.json"
SECONDS = 0.5
STOP = "WIDEBENCH_STOP"
"""Environment variable: the file that asks the workers of a command, once it is there, to keep their state and end."""


def stopping() -> bool:
    """Whether the command that this process works for is ending."""
    return bool(os.environ.get(STOP)) and os.path.exists(os.environ[STOP])


def stop_all() -> bool:
    """Ask all workers of the command that this process works for; False where it has none."""
    if not os.environ.get(STOP):
        return False
    Path(os.environ[STOP]).touch()
    return True


def asked_to_stop() -> Callable[[], bool]:
    """``stopping`` for whoever asks all the time: the disk is looked at every ``SECONDS`` only."""
    last, found = -SECONDS, False

    def asked() -> bool:
        nonlocal last, found
        if not found and time.monotonic() - last >= SECONDS:
            last, found = time.monotonic(), stopping()
        return found

    return asked


def reporter(folder: Path) -> Callable[[float], None]:
    """For a trainer: call it with the share of the training that is done, as often as convenient.

    In a worker of a command that has been killed it ends the process: nobody waits for the rest, and whoever runs the
    command again wants the folder.
    """
    last = 0.0

    def report(share: float) -> None:
        nonlocal last
        if time.monotonic() - last < SECONDS:
            return
        last = time.monotonic()
        if _is_orphan():
            os._exit(1)
        with contextlib.suppress(OSError):  # a picture of the work must not stop it
            (folder / FILE).write_text(f"{share:.4f}")

    return report


def _is_orphan() -> bool:
    """Whether the process that started this one to work for it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return False
    return os.getppid() != parent.pid if parent.sentinel is None else not parent.is_alive()


def clear(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A cell that is to run: its folder, and its share of the work in any unit."""

    folder: Path
    weight: float


@contextlib.contextmanager
def watch(jobs: Sequence[Job]) -> Iterator[None]:
    """While open: a bar with an estimate of the time left on a terminal, and a line for every cell that ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(jobs, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(jobs: Sequence[Job], stop: threading.Event) -> None:
    from tqdm import tqdm

    before = {job: changed(job.folder / DONE) for job in jobs}
    begun = time.time()
    ended: set[Job] = set()
    form = "{percentage:3.0f}%|{bar}| {desc} {elapsed}<{remaining}"
    total = sum(job.weight for job in jobs) or 1.0
    with tqdm(total=1.0, bar_format=form, smoothing=0, disable=None, leave=False) as bar:
        while True:
            last = stop.is_set()
            for job in jobs:
                if job not in ended and changed(job.folder / DONE) not in (0.0, before[job]):
                    ended.add(job)
                    tqdm.write(_line(job.folder))
            bar.set_description_str(f"{len(ended)} of {len(jobs)} cells", refresh=False)
            bar.n = sum(job.weight * (1.0 if job in ended else _share(job.folder, begun)) for job in jobs) / total
            bar.refresh()
            if last:
                return
            stop.wait(SECONDS)


def changed(path: Path) -> float:
    """When it was last written; 0 for a file that is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0.0


def _share(folder: Path, begun: float) -> float:
    """What the cell last said; 0 where that was before this command began."""
    path = folder / FILE
    try:
        return float(path.read_text()) if path.stat().st_mtime >= begun - 1 else 0.0
    except (OSError, ValueError):
        return 0.0


def _line(folder: Path) -> str:
    try:
        record = store.read_json(folder / DONE)
        line = f"{folder.name}: {record['status']}"
        with contextlib.suppress(OSError):  # a process that died left none
            line += f" in {store.read_json(folder / ENVIRONMENT)['wall_seconds']:.1f} s"
        return f"{line}. {record['reason']}".rstrip()
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder.name}: left no record."
