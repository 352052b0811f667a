"""``python -m bench.plan``, with the arguments of ``python -m bench``: what it would do, and at what cost."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.arguments import helped
from bench.plan.cells import PlanError, Planned, plan
from bench.plan.commandline import parse
from bench.plan.estimate import Estimate, estimates
from bench.plan.state import State, state

_USE = (
    "use python -m bench.plan [-m] [key=value ...], with the settings of python -m bench, as in task=digits "
    "model.width=256; python -m bench --help lists them. Nothing is trained."
)
_SOURCES = {
    "records": "the speed of {} from records of earlier runs here",
    "measured": "the speed of {} from a short measurement just now",
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 (wrong settings: one sentence)."""
    helped(arguments, _USE)
    torch.set_num_threads(1)  # as a cell does
    try:
        overrides, flags = parse(arguments)
        cells = plan(overrides, multirun=bool(flags))
    except PlanError as error:
        print(f"widebench: {error}", file=sys.stderr)
        return 2
    states = [state(planned) for planned in cells]
    costs = estimates(list(zip(cells, states, strict=True)), _own_bytes())
    print(table(cells, states, costs))
    return 0


def table(cells: Sequence[Planned], states: Sequence[State], costs: Sequence[Estimate | None]) -> str:
    """A line a cell and the sum, as text."""
    rows = [("cell", "settings", "networks", "steps", "time", "memory", "state")]
    for planned, found, cost in zip(cells, states, costs, strict=True):
        counts = f"{found.members - found.trained} of {found.members}" if found.members else ""
        numbers = _numbers(cost) if cost else ("", "", "")
        rows.append((planned.name, _swept(planned, cells), counts, *numbers, found.note))
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    right = (2, 3, 4, 5)
    lines = ["  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
             .rstrip() for r in rows]  # fmt: skip
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *_sum(states, costs)])


def _numbers(cost: Estimate) -> tuple[str, str, str]:
    most = "<" if cost.bound else ""
    if not cost.steps:  # a study: nobody has asked how much memory it takes
        return "", duration(cost.seconds), ""
    return f"{most}{cost.steps:,}", most + duration(cost.seconds), size(cost.bytes)


def _sum(states: Sequence[State], costs: Sequence[Estimate | None]) -> list[str]:
    to_run = [cost for cost in costs if cost is not None]
    done = sum(state.done for state in states)
    if done == len(states):
        return [f"All {done} cells are done: there is nothing to run."]
    if not to_run:
        return [
            f"{len(states) - done} studies to run, {done} done. What a study costs is not known before it ran once."
        ]
    seconds, processes = [cost.seconds for cost in to_run], min(os.cpu_count() or 1, len(to_run))
    wall = max(sum(seconds) / processes, *seconds)
    most = "At most" if any(cost.bound for cost in to_run) else "About"
    text = f"{len(to_run)} cells to run, {done} done. {most} {duration(sum(seconds))} of one process"
    if processes > 1 and not torch.cuda.is_available():
        text += f", {duration(wall)} with {processes} at once"
    lines = [f"{text}; up to {size(max(cost.bytes for cost in to_run))} a process."]
    cells = [cost for cost in to_run if cost.steps]
    counts = {source: sum(cost.source == source for cost in cells) for source in _SOURCES}
    speeds = [_SOURCES[s].format("all" if n == len(cells) else f"{n} cells") for s, n in counts.items() if n]
    if cells:
        lines.append(
            f"Estimates: {' and '.join(speeds)}; the steps of the lazy theory (networks that learn features need "
            "fewer)."
        )
    if len(cells) < len(to_run):
        lines.append("Studies: what they took when they last ran.")
    if unknown := len(states) - done - len(to_run):
        lines.append(f"{unknown} studies are to run besides: what a study costs is not known before it ran once.")
    if any(cost.bound for cost in to_run):
        lines.append("<: no theory says how many steps these settings take; this is for trainer.max_steps.")
    return lines


def _swept(planned: Planned, cells: Sequence[Planned]) -> str:
    """The overrides in which the cells differ."""
    common = set(cells[0].overrides).intersection(*(cell.overrides for cell in cells)) if len(cells) > 1 else set()
    return " ".join(override for override in planned.overrides if override not in common)


def duration(seconds: float) -> str:
    """Two digits of it: 0.4 s, 25 s, 3.5 min, 12 h."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{_rounded(seconds / length)} {unit}"
    return f"{_rounded(seconds)} s"


def size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if count >= length:
            return f"{_rounded(count / length)} {unit}"
    return f"{count / 1e6:.0f} MB"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _own_bytes() -> float:
    """Of this process, with everything imported."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
    return 4e8


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
