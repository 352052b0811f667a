"""One finished cell to Weights & Biases: curves, tables, summary, spectra. The Record stays the truth; this is a copy.

Offline by default: everything is recorded in the run's folder with no account, to be sent later by ``bench.sync``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import netrc
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np

from bench.record import Record

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
MODES = ("online", "offline", "disabled")

TIME = "training/time"

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
    """Whether what that mode records of a cell is there already."""
    return mode == "disabled" or any(folder.glob("wandb/*run-*"))


def track(
    record: Record,
    *,
    mode: Mode,
    project: str,
    group: str,
    run_id: str,
    config: Mapping[str, Any],
    folder: Path,
) -> None:
    """Log one finished cell as one W&B run. A failure becomes one line in the log, never an exception.

    Args:
        record: what is logged.
        mode: ``disabled`` does not even import wandb.
        group: the experiment.
        run_id: the run's hash: the same cell is the same W&B run, however often it is logged.
        config: what the run was configured with; the card is added as ``card``.
        folder: W&B writes below it and, temporary files aside, nowhere else.
    """
    if mode == "disabled":
        return
    try:
        with _confined(folder, mode), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # W&B's own deprecations are not ours to act on
            _log(record, mode, project, group, run_id, config, folder)
    except Exception as problem:  # W&B may fail in any way; the result is on disk already
        reason = " ".join(str(problem).split()) or type(problem).__name__
        logger.warning("W&B did not record %s (%s); its result is safe on disk.", record.name, reason[:300])


def _log(
    record: Record, mode: Mode, project: str, group: str, run_id: str, config: Mapping[str, Any], folder: Path
) -> None:
    import wandb  # half a second: only where it is used

    settings = wandb.Settings(
        silent=True, console="off", init_timeout=30, disable_git=True, disable_code=True, disable_job_creation=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    run = wandb.init(mode=mode, project=project, group=group, id=run_id, name=record.name, dir=folder, resume="allow",
                     config={**config, "card": dict(record.card)}, settings=settings, reinit="create_new")  # fmt: skip
    finished = False
    try:
        run.define_metric(TIME, hidden=True)
        run.define_metric("training/*", step_metric=TIME)
        for row in history(record):
            run.log(row)
        run.log(_tables(record))
        run.summary.update({"status": record.status, "reason": record.reason, **summary(record)})
        finished = record.status == "done"
    finally:
        run.finish(exit_code=0 if finished else 1)


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
    """Every score and its standard error; what is not finite is left out."""
    values = {}
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
    os.environ.update({name: str(folder / "wandb" / place) for name, place in places.items()})
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
