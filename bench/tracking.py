"""One cell to Weights & Biases: curves while it trains, then tables, summary, plots. The Record stays the truth.

Offline by default: everything is recorded in the run's folder with no account, to be sent later by ``bench.sync``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import netrc
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np

from bench import store
from bench.record import Record

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
MODES = ("online", "offline", "disabled")

TIME = "training/time"
FOLDER = "wandb"
"""In a cell's folder."""

_POINTS = 60  # of a curve: enough for a picture, and 27 cells stay cheap
_CURVES = {
    "loss": ("loss_time", "loss"),
    "kernel_motion": ("snapshot_time", "snapshot_motion"),
    "kernel_distance": ("snapshot_time", "snapshot_distance"),
    "kernel_alignment": ("snapshot_time", "snapshot_alignment"),
    "kernel_alignment_held_out": ("snapshot_time", "snapshot_alignment_held_out"),
    "after_r2": ("snapshot_time", "snapshot_r2"),
    "after_skill": ("snapshot_time", "snapshot_skill"),
    "after_test_error": ("snapshot_time", "snapshot_test_error"),
    "network_test_error": ("snapshot_time", "snapshot_network_test_error"),
    "linearised_test_error": ("snapshot_time", "snapshot_linearised_test_error"),
    "linearised_distance": ("snapshot_time", "snapshot_linearised_distance"),
}
_SPECTRA = {"initial": "spectrum_initial", "after": "spectrum_after", "infinite width": "spectrum_infinite"}


def check(mode: str) -> None:
    """Whether that mode can work here; to be called before anything is trained.

    Raises:
        ValueError: no such mode, or ``online`` with nobody logged in; one sentence with the remedy.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown tracking mode '{mode}': use one of {', '.join(MODES)}.")
    if mode == "online" and not logged_in():
        raise ValueError(
            "tracking=online needs a W&B account: run `wandb login` or set WANDB_API_KEY, or use tracking=offline and "
            "send the runs later with python -m bench.sync."
        )


def is_tracked(mode: str, folder: Path) -> bool:
    """Whether what that mode records of a cell is there already, to the end."""
    return mode == "disabled" or Rows(folder).ended


def is_whole(folder: Path) -> bool:
    """Whether no process was killed while it tracked the cell: what is there may be sent."""
    return Rows(folder).closed


class Rows:
    """The rows of one cell's history, by whatever process: a line each, on disk before W&B is handed the row.

    W&B keeps an offline run in memory by blocks of 32 KB: a process that is killed leaves little of it. So what takes
    the cell up logs these rows again, in place of the file that the killed one left; but never those of a file that was
    sent. No step is used twice.

    Attributes:
        step: the next one.
        closed: the last file of W&B's is whole. ``ended``: and with it everything of the record.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER / "rows.jsonl"
        self.step = 0
        self.closed = self.ended = False
        self._rows: dict[int, Mapping[str, float]] = {}
        self._files: list[tuple[str, int]] = []
        self._seen: dict[str, float] = {}
        self._curves: dict[str, int] = {}
        with contextlib.suppress(OSError):
            for line in store.read_lines(self.path):
                self._take(line)

    def live(self, rows: Mapping[str, Mapping[str, float]]) -> tuple[int, Mapping[str, float]] | None:
        """A row of what is new: of the members' training steps beyond the last that was handed over."""
        new = {name: row for name, row in rows.items() if row["steps"] > self._seen.get(name, -1.0)}
        if not new:
            return None
        row = {f"live/{name}/{key}": value for name, part in new.items() for key, value in part.items()}
        row["_timestamp"] = time.time()
        return self._add(row, seen={name: part["steps"] for name, part in new.items()})

    def curves(self, rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[int, Mapping[str, float]]]:
        """The rows of a record's curves that were not handed over."""
        key = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:10]
        for place in range(self._curves.get(key, 0), len(rows)):
            yield self._add(rows[place], curve=key, place=place)

    def table(self) -> int:
        """The step of what is logged besides rows."""
        return self._add({})[0]

    def begin(self, file: str, sent: Callable[[str], bool]) -> list[tuple[int, Mapping[str, float]]]:
        """The rows that a new file of W&B's repeats: all beyond those of the files that were sent."""
        ends = [begun for _, begun in self._files[1:]] + [self.step]
        first = max((end for (name, _), end in zip(self._files, ends, strict=False) if sent(name)), default=0)
        self._write({"file": file})
        return [(step, row) for step, row in self._rows.items() if step >= first and row]

    def close(self, ended: bool) -> None:
        self._write({"closed": True, "ended": ended})

    def _add(self, row: Mapping[str, float], **what: Any) -> tuple[int, Mapping[str, float]]:
        step = self.step
        self._write({"step": step, "row": row, **what})
        return step, row

    def _take(self, line: Mapping[str, Any]) -> None:
        if "step" in line:
            self.step = int(line["step"]) + 1
            self._rows[int(line["step"])] = line["row"]
        self._seen |= line.get("seen", {})
        if "curve" in line:
            self._curves[line["curve"]] = line["place"] + 1
        if "file" in line:
            self._files.append((line["file"], self.step))
        self.closed, self.ended = bool(line.get("closed")), bool(line.get("ended"))

    def _write(self, line: Mapping[str, Any]) -> None:
        store.append_line(self.path, line)
        self._take(line)


class Tracker:
    """One cell as one W&B run: rows while it trains, and all of its record at the end.

    It begins with the first row. A failure of W&B becomes one line in the log, never an exception, and ends it.
    """

    def __init__(
        self, name: str, *, mode: Mode, project: str, group: str, run_id: str, config: Mapping[str, Any], folder: Path
    ) -> None:
        """
        Args:
            mode: ``disabled`` does not even import wandb.
            group: the experiment.
            run_id: the run's hash: the same cell is the same W&B run, however often it is taken up.
            config: what the run was configured with; the record's card is added as ``card``.
            folder: W&B writes below it and, temporary files aside, nowhere else.
        """
        self.name = name
        self.works = mode != "disabled"
        self._mode: Mode = mode
        self._identity: Mapping[str, Any] = {"project": project, "group": group, "id": run_id}
        self._config = config
        self._folder = folder
        self._rows = Rows(folder)
        self._run: Any = None
        self._members: set[str] = set()
        self._place = contextlib.ExitStack()

    def live(self, rows: Mapping[str, Mapping[str, float]]) -> None:
        """Log what was seen while it trains.

        Args:
            rows: member -> quantity -> number, with ``steps`` and ``time`` among them.
        """
        self._try(lambda: self._live(rows))

    def finish(self, record: Record) -> None:
        """Log a record, and end the run: curves, tables, plots and summary of one that has them.

        A cell that failed or was interrupted is taken up later, and with it this run.
        """
        if record.status == "failed":
            self._try(lambda: self._close(record))
        elif record.status != "interrupted":
            self._try(lambda: self._complete(record))
        elif self._run is not None:
            self._try(lambda: self._close(record))

    def _try(self, work: Callable[[], None]) -> None:
        """Nothing is done once it has failed; W&B may fail in any way, and the result is on disk without it."""
        if not self.works:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # W&B's own deprecations are not ours to act on
                work()
        except Exception as problem:
            self.works = False
            reason = " ".join(str(problem).split()) or type(problem).__name__
            logger.warning("W&B did not record %s (%s); its result is safe on disk.", self.name, reason[:300])
            with contextlib.suppress(Exception):
                self._end(1)

    def _live(self, rows: Mapping[str, Mapping[str, float]]) -> None:
        self._begun()
        if new := self._rows.live(rows):
            self._log(*new)

    def _log(self, step: int, row: Mapping[str, float]) -> None:
        for member in sorted({key.split("/")[1] for key in row if key.startswith("live/")} - self._members):
            self._run.define_metric(f"live/{member}/*", step_metric=f"live/{member}/time")
            self._members.add(member)
        self._run.log(dict(row), step=step)

    def _complete(self, record: Record) -> None:
        run = self._begun()
        run.config.update({"card": dict(record.card)}, allow_val_change=True)
        for step, row in self._rows.curves(history(record)):
            self._log(step, row)
        run.log(_tables(record), step=self._rows.table())
        run.summary.update({"status": record.status, "reason": record.reason, **summary(record)})
        self._end(0 if record.status == "done" else 1, ended=True)

    def _close(self, record: Record) -> None:
        run = self._begun()
        run.summary.update({"status": record.status, "reason": record.reason})
        if record.status == "interrupted":
            run.mark_preempting()
        self._end(1)

    def _begun(self) -> Any:
        if self._run is None:
            import wandb  # half a second: only where it is used

            self._place.enter_context(_confined(self._folder, self._mode))
            settings = wandb.Settings(
                silent=True, console="off", init_timeout=30, disable_git=True, disable_code=True,
                disable_job_creation=True, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                x_save_requirements=False,
            )  # fmt: skip
            self._run = wandb.init(mode=self._mode, name=self.name, dir=self._folder, resume="allow",
                                   config=dict(self._config), settings=settings, reinit="create_new",
                                   **self._identity)  # fmt: skip
            self._run.define_metric(TIME, hidden=True)
            self._run.define_metric("training/*", step_metric=TIME)
            self._repeat()
        return self._run

    def _repeat(self) -> None:
        """Log again what earlier processes logged offline and nobody sent, and drop their files."""
        own = Path(self._run.dir).parent
        earlier = {path.name: path for path in own.parent.glob("offline-run-*") if path != own}
        sent = {name for name, path in earlier.items() if any(path.glob("*.synced"))}
        rows = self._rows.begin(own.name, sent.__contains__)
        if self._mode == "offline":
            for step, row in rows:
                self._log(step, row)
            for name in earlier.keys() - sent:
                shutil.rmtree(earlier[name], ignore_errors=True)

    def _end(self, exit_code: int, ended: bool = False) -> None:
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish(exit_code=exit_code)
                self._rows.close(ended)
        finally:
            self._place.close()


def history(record: Record) -> list[dict[str, float]]:
    """The curves, averaged over the members, on one grid of times: a row a time."""
    curves = {name: c for name, (x, y) in _CURVES.items() if (c := _members(record, x, y))}
    times = [time[time > 0] for members in curves.values() for time, _ in members]
    times = [time for time in times if len(time)]
    if not times:
        return []
    first, last = min(time[0] for time in times), max(time[-1] for time in times)
    grid = np.geomspace(first, last, _POINTS)
    columns = {}
    for name, members in curves.items():
        lines = [np.interp(grid, time, values, left=np.nan, right=np.nan) for time, values in members]
        columns[f"training/{name}"] = np.mean(lines, axis=0)  # nan where a member has no value: no jumps
    rows = [
        {key: float(column[i]) for key, column in columns.items() if np.isfinite(column[i])} for i in range(_POINTS)
    ]
    return [{TIME: float(time), **row} for time, row in zip(grid, rows, strict=True) if row]


def summary(record: Record) -> dict[str, float]:
    """Every score and its standard error, and the numbers of the card; what is not finite is left out."""
    values = {
        key: float(value)
        for key, value in record.card.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for score in record.scores:
        values[score.name] = score.value
        values[f"{score.name}_standard_error"] = score.standard_error
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _tables(record: Record) -> dict[str, Any]:
    """The table of scores, and the plots: W&B draws them, so nothing is drawn here."""
    import wandb

    columns: list[str | int] = ["score", "value", "standard_error", "n_seeds", "ceiling", "floor"]
    rows = [[s.name, s.value, s.standard_error, s.n_seeds, s.ceiling, s.floor] for s in record.scores]
    logged: dict[str, Any] = {"scores": wandb.Table(columns=columns, data=rows)}
    losses = [(np.log10(time), np.log10(loss)) for time, loss in _members(record, "loss_time", "loss", positive=True)]
    if losses:
        names = [f"member {i}" for i in range(len(losses))]
        logged["plots/loss"] = _lines(losses, names, "log10 relative train loss", "log10 time")
    spectra = {name: record.arrays[key] for name, key in _SPECTRA.items() if key in record.arrays}
    means = {name: _log_mean(np.atleast_2d(values)) for name, values in spectra.items()}
    if means:
        lines = [(np.log10(np.arange(1, len(mean) + 1)), mean) for mean in means.values()]
        logged["plots/spectra"] = _lines(lines, list(means), "log10 eigenvalue of K / N", "log10 index")
    return logged


def _lines(lines: list[tuple[np.ndarray, np.ndarray]], names: list[str], title: str, x_name: str) -> Any:
    import wandb

    thinned = [_thin(x, y) for x, y in lines]
    return wandb.plot.line_series(
        [x for x, _ in thinned], [y for _, y in thinned], keys=names, title=title, xname=x_name
    )


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    chosen = np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), 2 * _POINTS)).astype(int))
    return x[chosen].tolist(), y[chosen].tolist()


def _log_mean(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log10(values), np.nan).mean(axis=0)


def _members(record: Record, x: str, y: str, positive: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each member's finite points; arrays are padded with nan."""
    if x not in record.arrays or y not in record.arrays:
        return []
    curves = []
    for xs, ys in zip(np.atleast_2d(record.arrays[x]), np.atleast_2d(record.arrays[y]), strict=True):
        keep = np.isfinite(xs) & np.isfinite(ys)
        keep &= (xs > 0) & (ys > 0) if positive else True
        if keep.any():
            curves.append((xs[keep], ys[keep]))
    return curves


@contextlib.contextmanager
def _confined(folder: Path, mode: Mode) -> Iterator[None]:
    """W&B keeps caches in the home directory: below ``folder`` instead, as long as the run lasts."""
    folder.mkdir(parents=True, exist_ok=True)  # else W&B goes elsewhere without a word
    places = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}
    if mode == "offline":
        places["WANDB_CONFIG_DIR"] = "config"  # online, it says which server is the user's
    before = {name: os.environ.get(name) for name in places}
    os.environ.update({name: str(folder / FOLDER / place) for name, place in places.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
