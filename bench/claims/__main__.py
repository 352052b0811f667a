"""``python -m bench.claims [name ...]``: run theory claims; exit code 1 when a verdict is not the one on record."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench import store
from bench.claims import formats
from bench.claims.claim import MOST_SEEDS, Claim, Measurement
from bench.claims.redraw import APART, redraw, summary
from bench.claims.registry import Item, built_in, choose, load
from bench.claims.run import check
from bench.report.claims import write_claims
from bench.studies.study import FOLDER


def main(arguments: Sequence[str]) -> int:
    """Returns 0, 1 (a verdict is not as on record) or 2 (wrong arguments: one sentence, nothing run)."""
    chosen = _parser().parse_args(arguments)
    try:
        most = APART if chosen.redraw else MOST_SEEDS
        if chosen.seeds is not None and not 2 <= chosen.seeds <= most:
            raise ValueError(f"--seeds must be a whole number from 2 to {most}, not {chosen.seeds}.")
        if chosen.redraw is not None and not 2 <= chosen.redraw <= 1000:
            raise ValueError(f"--redraw must be a whole number of seed sets from 2 to 1000, not {chosen.redraw}.")
        if chosen.jobs is not None and chosen.jobs < 1:
            raise ValueError(f"--jobs must be a whole number of at least 1, not {chosen.jobs}.")
        known = built_in()
        if chosen.claims is not None:
            known = load(chosen.claims, known)
        items = choose(known, chosen.names)
        if chosen.list:
            print("\n".join(_entry(item) for item in items))
            return 0
        for option in ("junit", "report"):
            if chosen.redraw is not None and getattr(chosen, option) is not None:
                raise ValueError(f"--{option} is not for --redraw, whose table --json writes.")
        page = None if chosen.report is None else chosen.report / "claims.html"
        kept = chosen.runs / FOLDER / "any"
        for option, path in (("--json", chosen.json), ("--junit", chosen.junit), ("--report", page), ("--runs", kept)):
            if path is not None:
                store.check_writable(option, path)  # shows now, not after the runs
    except (ValueError, OSError) as error:
        print(f"widebench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    own = None if chosen.claims is None else chosen.claims.resolve().parent
    if chosen.redraw is not None:
        return _redraw([item for item in items if isinstance(item, Claim)], chosen, own)
    first_seed = secrets.randbelow(2**30) if os.environ.get("UNLOCK_SEED") == "1" else 0
    started = time.perf_counter()
    outcomes = check(
        items, chosen.runs / FOLDER, chosen.size, chosen.seeds, first_seed, chosen.jobs,
        tell=_tell, own=own,
    )  # fmt: skip
    print(formats.table(outcomes))
    print(f"{formats.summary(outcomes)} Seeds from {first_seed}; {time.perf_counter() - started:.0f} s.")
    document = formats.document(outcomes, chosen.size, first_seed)
    if chosen.json is not None:
        store.write_text(chosen.json, json.dumps(document, indent=1) + "\n")
    if chosen.junit is not None:
        store.write_text(chosen.junit, formats.junit(outcomes))
    if chosen.report is not None:
        print(f"Report: {write_claims(document, chosen.report)}")
    return int(not all(outcome.passed for outcome in outcomes))


def _redraw(claims: Sequence[Claim], chosen: argparse.Namespace, own: Path | None) -> int:
    lines = redraw(
        claims, chosen.runs / FOLDER, chosen.runs / "redraws.jsonl", chosen.redraw, chosen.size, chosen.seeds,
        chosen.jobs, own, _tell,
    )  # fmt: skip
    found = summary(claims, lines, chosen.redraw)
    if chosen.json is not None:
        store.write_text(chosen.json, json.dumps(found, indent=1) + "\n")
    near = ", ".join(found["closer_than_4_deviations"]) or "none"
    off = ", ".join(found["predictions_more_than_4_errors_off"]) or "none"
    print(
        f"{found['trials']} trials of {len(found['claims'])} claims: {found['flips']} flips (chance alone: at most "
        f"{found['bound']}, 95 %), {found['controls_missed']} controls not rejected. Closer than 4 seed standard "
        f"deviations to the threshold: {near}. Predictions more than 4 standard errors off: {off}."
    )
    return int(not found["within_bound"] or found["controls_missed"] > 0)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"widebench: {message}", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m bench.claims", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="which claims, as in after-kernel-*; all by default")
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu", help="cpu: seconds a claim; gpu: larger")
    parser.add_argument("--seeds", type=int, metavar="N", help="instead of each claim's own number")
    parser.add_argument("--json", type=Path, metavar="F", help="write the outcomes as JSON")
    parser.add_argument("--junit", type=Path, metavar="F", help="write the outcomes as JUnit XML")
    parser.add_argument("--claims", type=Path, metavar="my_claims.py", help="a file of claims of your own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the studies' records are kept")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write claims.html there")
    parser.add_argument("--jobs", type=int, metavar="N", help="studies at a time; as many as cores by default")
    parser.add_argument("--redraw", type=int, metavar="N", help="each claim on N fresh seed sets (hours), resumable")
    parser.add_argument("--list", action="store_true", help="only name the claims")
    return parser


def _entry(item: Item) -> str:
    kind = "measurement" if isinstance(item, Measurement) else f"{item.kind}, on record: {item.recorded}"
    return f"{item.name} ({kind}): {item.statement}"


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # in the workers
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("widebench: interrupted; the studies that are done are kept.", file=sys.stderr)
        sys.exit(130)
