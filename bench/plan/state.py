"""How much of a planned cell is on disk already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import store, tracking
from bench.plan.cells import Planned
from bench.studies.cell import finished


@dataclass(frozen=True)
class State:
    """Of one cell.

    Attributes:
        done: nothing is to be done.
        trained: how many of its networks are on disk, of ``members``.
        note: in words.
    """

    done: bool
    trained: int
    members: int
    note: str


def state(planned: Planned) -> State:
    """What ``python -m bench`` would find in the cell's folder."""
    folder = planned.folder
    seeds = planned.card["seeds"]
    members = seeds["data"] * seeds["init"]
    forced = bool(planned.config.force)
    trained = 0 if forced else min(members, len(list(folder.glob("trained/*.npz"))))
    record = None if forced else finished(planned.settings, folder)
    if record is not None:
        tracked = tracking.is_tracked(planned.config.tracking.mode, folder)
        note = record.status if tracked else f"{record.status}, W&B to do"
        return State(tracked, members, members, note)
    if store.held(folder):
        note = "another process is at work on it"
    elif trained == members:
        note = "trained, to be scored"
    elif trained:
        note = f"{trained} of {members} networks trained"
    else:
        note = _earlier(folder) or "to do"
    return State(False, trained, members, note)


def _earlier(folder: Path) -> str:
    """What an attempt before this one left behind."""
    try:
        record = store.read_record(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"{record.status}, to do again" if record.status in ("failed", "interrupted") else ""
