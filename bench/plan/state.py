"""How much of a planned cell is on disk already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import store, tracking
from bench.plan.cells import Planned
from bench.studies.cell import finished
from bench.studies.study import find, fingerprint


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
    if planned.request is not None:
        return _of_study(planned)
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


def _of_study(planned: Planned) -> State:
    assert planned.request is not None
    found = None
    if not planned.config.force:
        found = find(planned.request, planned.folder.parent, fingerprint())
    if found is None:
        held = "another process is at work on it" if store.held(planned.folder) else ""
        return State(False, 0, 0, held or _earlier(planned.folder) or "to do")
    tracked = tracking.is_tracked(planned.config.tracking.mode, planned.folder)
    return State(tracked, 0, 0, found.status if tracked else f"{found.status}, W&B to do")


def _earlier(folder: Path) -> str:
    """What an attempt before this one left behind."""
    try:
        record = store.read_record(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"{record.status}, to do again" if record.status in ("failed", "interrupted") else ""
