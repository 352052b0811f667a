"""Cells handed to Hydra's launcher; those that a dead process took with it are handed over again."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench import progress, store, workers
from bench.plan import CONF, Planned
from bench.record import Record
from bench.savepoint import Interrupted

APART = ".apart"
"""In a cell's folder: leave it, it is to run alone."""
POLL = 0.5
RAY_STORE = 75 * 2**20  # bytes of Ray's object store, through which next to nothing passes: the launcher's own default
_DEFAULTS = {"ray": ["+hydra.launcher.ray.remote.max_retries=0"]}  # else Ray repeats what fills the memory for ever


def launch(
    cells: Sequence[Planned], overrides: Sequence[str], flags: Sequence[str], hydra: Callable[[Sequence[str]], None]
) -> None:
    """Run the cells with the launcher that the overrides name.

    A process that dies (killed, out of memory) takes a launcher with it, and with it the cells of other processes:
    what has not ended is then handed over again, and the cells that were at work when it died run one by one after
    all others. One that dies alone has failed, and its record says so.

    SIGTERM, to the command or to one of them, is handed on to all workers of joblib and Ray: they write the state of
    what they are at, and no cell is begun any more. (Slurm's jobs are not ours to end.)

    Args:
        overrides: of the whole sweep.
        hydra: runs one command line by Hydra; raises what its launcher does.

    Raises:
        RuntimeError: the launcher does not work at all (one sentence).
        Interrupted: SIGTERM came.
    """
    own, launcher = _launcher(cells, overrides)
    if launcher not in ("joblib", "ray"):
        _launch(cells, overrides, flags, hydra, own)
        return
    stop = Path(cells[0].config.runs).resolve() / f".stop-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(workers.variable(progress.STOP, str(stop)))
        if launcher == "joblib":
            tracked = cells[0].config.tracking.mode != "disabled"
            stack.enter_context(workers.forked("bench.run", *(workers.WANDB if tracked else ())))
        if launcher == "ray":
            _start_ray([*cells[0].overrides, *own])
        stack.enter_context(_handing_on(stop))
        _launch(cells, overrides, flags, hydra, own)
        if progress.stopping():
            raise Interrupted


def _launch(
    cells: Sequence[Planned],
    overrides: Sequence[str],
    flags: Sequence[str],
    hydra: Callable[[Sequence[str]], None],
    own: Sequence[str],
) -> None:
    for cell in cells:
        (cell.folder / APART).unlink(missing_ok=True)
        if not store.held(cell.folder):
            progress.clear(cell.folder)  # of a process that was killed
    ended = _Ended(cells)
    apart: list[Planned] = []
    try:
        while rest := ended.not_yet(apart):
            try:
                with _errors_raised():
                    hydra([*overrides, *own, *flags])
                break
            except Exception as error:  # whatever the launcher raises when it has lost a process
                _wait(cells)
                if progress.stopping():
                    return
                apart += _died(ended.not_yet(apart))
                if ended.not_yet(apart) == rest:
                    raise RuntimeError(f"The launcher stopped: {_sentence(error)}") from error
        for cell in apart:
            if progress.stopping():
                return
            _alone(cell, ["-m", *own, *cell.overrides], ended, hydra)
    finally:
        for cell in apart:
            (cell.folder / APART).unlink(missing_ok=True)


def _start_ray(overrides: Sequence[str]) -> None:
    """Ray takes SIGTERM for itself when it starts: so it starts, as its launcher would start it, before we take it; its
    workers have the environment of this moment."""
    ray = importlib.import_module("ray")  # an optional package
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose("config", list(overrides), return_hydra_config=True).hydra.launcher.ray.init
    given: Any = OmegaConf.to_container(settings, resolve=True) if settings else {}
    try:
        ray.init(**{"object_store_memory": RAY_STORE, **given})
    except Exception as error:  # no cluster at the address, no room, ...
        raise RuntimeError(f"The launcher stopped: {_sentence(error)}") from error


def is_apart(folder: Path) -> bool:
    """Whether this cell is to be left to a later launch, of it alone."""
    return (folder / APART).exists()


class _Ended:
    """Which cells have left a record since this was made."""

    def __init__(self, cells: Sequence[Planned]) -> None:
        self.before = {cell.name: (cell, progress.changed(cell.folder / progress.DONE)) for cell in cells}

    def __contains__(self, cell: Planned) -> bool:
        return progress.changed(cell.folder / progress.DONE) not in (0.0, self.before[cell.name][1])

    def not_yet(self, apart: Sequence[Planned]) -> list[Planned]:
        names = {cell.name for cell in apart}
        return [cell for name, (cell, _) in self.before.items() if name not in names and cell not in self]


def _launcher(cells: Sequence[Planned], overrides: Sequence[str]) -> tuple[list[str], str]:
    """What we add to the overrides, and the launcher's name."""
    named = [word.partition("=")[2] for word in overrides if word.startswith("hydra/launcher=")]
    if named:
        given = {word.lstrip("+").partition("=")[0] for word in overrides}
        added = _DEFAULTS.get(named[-1], [])
        return [word for word in added if word.lstrip("+").partition("=")[0] not in given], named[-1]
    if len(cells) < 2 or torch.cuda.is_available():
        return [], "basic"
    # Handing cells to a worker costs a fifth of a second each time: several at once, if there are many.
    at_once = max(1, len(cells) // (6 * (os.cpu_count() or 1)))
    return ["hydra/launcher=joblib", f"hydra.launcher.batch_size={at_once}"], "joblib"


def _died(cells: Sequence[Planned]) -> list[Planned]:
    """Those that were begun, of cells that have not ended; from now on they are left to run alone."""
    died = [cell for cell in cells if (cell.folder / progress.FILE).exists()]
    for cell in died:
        (cell.folder / APART).touch()
    return died


def _alone(cell: Planned, arguments: Sequence[str], ended: _Ended, hydra: Callable[[Sequence[str]], None]) -> None:
    (cell.folder / APART).unlink()
    print(f"{cell.name}: its process died, or went with one that did; once more, alone.", flush=True)
    try:
        with _errors_raised():
            hydra(arguments)
    except Exception as error:  # its process died again
        _wait([cell])
        if cell not in ended:
            progress.clear(cell.folder)
            (cell.folder / progress.ENVIRONMENT).unlink(missing_ok=True)  # of an earlier run
            reason = f"Its process died: {_sentence(error)}"
            store.write_record(cell.folder, Record(cell.name, "failed", reason, dict(cell.card)))


def _wait(cells: Sequence[Planned]) -> None:
    """Until no process holds any of them: a launcher that stopped leaves the others at work."""
    while any(store.held(cell.folder) for cell in cells):
        time.sleep(POLL)


@contextlib.contextmanager
def _handing_on(stop: Path) -> Iterator[None]:
    """While open, SIGTERM makes the file by which ``progress.stopping`` knows of it, in this process and in workers,
    which have its name from this process's environment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop.unlink(missing_ok=True)  # of a command that was killed while it ended, and had this process's number
    before = signal.signal(signal.SIGTERM, lambda number, frame: progress.stop_all())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        stop.unlink(missing_ok=True)


def _errors_raised() -> contextlib.AbstractContextManager[None]:
    """Hydra raises what stops a launcher, instead of printing it and ending the process."""
    return workers.variable("HYDRA_FULL_ERROR", "1")


def _sentence(error: BaseException, most: int = 300) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[:most] + " ..."
