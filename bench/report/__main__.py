"""``python -m bench.report [runs=DIR] [out=DIR]``: print the table, write the page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.arguments import settings
from bench.report.tables import text_table
from bench.report.write import write_report

_DEFAULTS = {"runs": "runs", "out": "report"}
_USE = "use python -m bench.report [runs=DIR] [out=DIR]"


def main(arguments: Sequence[str]) -> int:
    """Returns 0 where every run is done, 1 where one is not, 2 where nothing could be reported."""
    try:
        chosen = settings(arguments, _DEFAULTS, _USE)
        report = write_report(Path(chosen["runs"]), Path(chosen["out"]))
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    if report.collected.records:
        print(text_table(report.collected.records))
    for warning in report.collected.warnings:
        print(f"warning: {warning}")
    problems = report.collected.problems
    for problem in problems:
        print(f"not done: {problem}")
    print("written: " + ", ".join(str(file) for file in report.files))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
