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
from bench.claims.claim import Measurement
from bench.claims.registry import Item, built_in, choose, load
from bench.claims.run import check
from bench.report.claims import write_claims
from bench.studies.study import FOLDER


def main(arguments: Sequence[str]) -> int:
    """Returns 0, 1 (a verdict is not as on record) or 2 (wrong arguments: one sentence, nothing run)."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.seeds is not None and chosen.seeds < 2:
            raise ValueError(f"--seeds must be a whole number of at least 2, not {chosen.seeds}.")
        if chosen.jobs is not None and chosen.jobs < 1:
            raise ValueError(f"--jobs must be a whole number of at least 1, not {chosen.jobs}.")
        known = built_in()
        if chosen.claims is not None:
            known = load(chosen.claims, known)
        items = choose(known, chosen.names)
        if chosen.list:
            print("\n".join(_entry(item) for item in items))
            return 0
        for path in (chosen.json, chosen.junit):
            if path is not None:
                store.write_text(path, "")  # a path that cannot be written shows now, not after the runs
    except (ValueError, OSError) as error:
        print(f"widebench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    first_seed = secrets.randbelow(2**30) if os.environ.get("UNLOCK_SEED") == "1" else 0
    started = time.perf_counter()
    outcomes = check(
        items, chosen.runs / FOLDER, chosen.size, chosen.seeds, first_seed, chosen.jobs,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
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
    parser.add_argument("--list", action="store_true", help="only name the claims")
    return parser


def _entry(item: Item) -> str:
    kind = "measurement" if isinstance(item, Measurement) else f"{item.kind}, on record: {item.recorded}"
    return f"{item.name} ({kind}): {item.statement}"


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # in the workers
    sys.exit(main(sys.argv[1:]))
