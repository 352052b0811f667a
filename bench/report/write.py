"""From a folder of runs to the files of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.record import Record
from bench.report.collect import Collected, collect
from bench.report.panels import study_pages
from bench.report.picture import main_picture, with_skill
from bench.report.render import report_page
from bench.report.studies import studies
from bench.report.tables import main_csv, main_tex, scores_csv
from bench.store import write_text


@dataclass(frozen=True)
class Report:
    """What was read, and the files that were written."""

    collected: Collected
    files: tuple[Path, ...]


def write_report(runs: Path, out: Path) -> Report:
    """Read every run below ``runs``; write ``report.html``, ``main.csv``, ``scores.csv`` and ``main.tex`` to ``out``.

    ``main.png`` is the main picture, for slides; it is left out where no cell has a skill. Each study that was run is
    a page of its own (``bench.report.panels``); where nothing else was run, they are all there is.

    The same runs give the same bytes.

    Raises:
        ValueError: ``runs`` is no folder, cannot be read, or holds no run.
        OSError: ``out`` cannot be written (one sentence each).
    """
    contents = study_pages(runs)
    try:
        collected = collect(runs, leave_out=out)
    except ValueError:
        if not contents:
            raise
        collected = Collected(())
    records = collected.records
    if records or collected.problems:
        contents = {
            "report.html": report_page(collected),
            "main.csv": main_csv(records),
            "scores.csv": scores_csv(records),
            "main.tex": main_tex(records),
            **contents,
        }
    try:
        for name, text in contents.items():
            write_text(out / name, text)
        pictures = [out / "main.png"] if with_skill(studies(records)) else []
        for picture in pictures:
            main_picture(records, picture)
    except OSError as error:
        sentence = f"The report cannot be written to {out} ({error.strerror}): name another folder by out=DIR."
        raise OSError(sentence) from error
    return Report(collected, (*(out / name for name in contents), *pictures))


def write_record_page(record: Record, out_file: Path) -> None:
    """The same page for one record, of the main job or of anybody's checkpoints."""
    write_text(out_file, report_page(Collected((record,)), title=record.name))
