"""``python -m bench.report``: exit codes, sentences, and the same bytes from the same runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_records import grid_of_records, record, write_runs

from bench.report.__main__ import main
from bench.report.collect import collect

RECORDS = grid_of_records(["staircase"], [16, 64], [0.1, 1.0])


@pytest.fixture
def runs(tmp_path) -> Path:
    return write_runs(tmp_path / "runs", RECORDS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes_wherever_the_report_lies(runs, tmp_path, capsys):
    for out in (tmp_path / "one", tmp_path / "two", runs / "report", runs / "report"):
        assert main([f"runs={runs}", f"out={out}"]) == 0
    first = contents(tmp_path / "one")
    assert set(first) == {"report.html", "main.csv", "scores.csv", "main.tex", "main.png"}
    assert contents(tmp_path / "two") == first
    assert contents(runs / "report") == first
    assert "not done" not in capsys.readouterr().out


def test_the_order_in_which_runs_were_written_does_not_matter(runs, tmp_path):
    main([f"runs={runs}", f"out={tmp_path / 'one'}"])
    main([f"runs={write_runs(tmp_path / 'again', RECORDS[::-1])}", f"out={tmp_path / 'two'}"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("arguments", [["foo=1"], ["runs"], ["runs="], ["--help=1"], ["runs=nowhere"], ["runs=file"]])
def test_bad_arguments_are_one_sentence_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(arguments) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert len(written.err.splitlines()) == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_unwritable_folder_is_one_sentence_and_exit_code_2(out, runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([f"runs={runs}", f"out={tmp_path / out}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "out=DIR" in error


def test_a_folder_that_cannot_be_read_is_one_sentence_and_exit_code_2(runs, monkeypatch, capsys):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # the tests may run as root, whom no mode stops
    assert main([f"runs={runs}"]) == 2
    assert capsys.readouterr().err == f"The folder {runs} cannot be read (Permission denied).\n"


def test_an_empty_folder_of_runs_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    assert main([f"runs={tmp_path}"]) == 2
    assert "holds no runs" in capsys.readouterr().err


def broken(folder: Path, change) -> str:
    path = folder / "record.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder.name


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(schema=99),
        lambda content: content.update(card=None),
        lambda content: content.update(status="splendid"),
        lambda content: content.update(surprise=1),
        lambda content: content.pop("scores"),
        lambda content: content["scores"].append({"name": "after/r2"}),
        lambda content: content["scores"][0].update(value="high"),
        lambda content: content.update(scores=[1, 2]),
    ],
)
def test_a_damaged_record_is_a_sentence_and_the_others_are_reported(change, runs, tmp_path, capsys):
    name = broken(runs / RECORDS[0].name, change)
    assert main([f"runs={runs}", f"out={tmp_path / 'out'}"]) == 1
    (sentence,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not done: ")]
    assert sentence.startswith(f"not done: {name}: damaged: ")
    assert sentence.endswith(".")
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{name}: damaged: " in page
    assert f"{len(RECORDS) - 1} of {len(RECORDS) - 1} cells done" in page


# numpy leaves a torn archive open until it is collected
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_torn_files_are_sentences(runs):
    (runs / RECORDS[0].name / "record.json").write_text('{"schema": 1, "na')
    whole = (runs / RECORDS[1].name / "arrays.npz").read_bytes()
    (runs / RECORDS[1].name / "arrays.npz").write_bytes(whole[: len(whole) // 2])
    (runs / RECORDS[2].name / "environment.json").write_bytes(b"\xff\xfe")
    for name, file in (("no-record", "config.yaml"), ("networks-of-diagnose", "batches.json")):
        (runs / name).mkdir()
        (runs / name / file).write_text("{}")
    collected = collect(runs)
    assert [one.name for one in collected.records] == [RECORDS[3].name]
    assert set(collected.damaged) == {one.name for one in RECORDS[:3]}
    assert collected.unfinished == ("no-record",)
    assert len(collected.problems) == 4
    assert all(len(sentence.splitlines()) == 1 for sentence in collected.problems)


def test_runs_that_are_not_done_give_exit_code_1_and_their_reason(runs, tmp_path, capsys):
    write_runs(runs, [record(width=8, status="unconverged", reason="2 of 6 members did not reach trainer.tolerance.")])
    assert main([f"runs={runs}", f"out={tmp_path / 'out'}"]) == 1
    assert "unconverged: 2 of 6 members did not reach trainer.tolerance." in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_run_is_reported(tmp_path):
    """A tiny sweep through both commands, as a user types them."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    cell = ["task=staircase", "task.d=8", "task.n_train=24", "task.n_test=40", "trainer.tolerance=1e-2", "seeds.init=2"]
    for width in (16, 24):
        done = run("bench", *cell, f"model.width={width}", "tracking=disabled")
        assert done.returncode == 0, done.stderr
    done = run("bench.report")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("staircase")]
    assert [(line[0], line[2]) for line in lines] == [("staircase", "16"), ("staircase", "24")]
    page = (tmp_path / "report" / "report.html").read_text()
    for section in ("headline", "picture", "verdicts", "table", "maps", "training", "spectra", "limit", "cells"):
        assert f'<h2 id="{section}">' in page
    assert "2 of 2 cells done" in page
    score = json.loads(next(tmp_path.glob("runs/*w16*/record.json")).read_text())["scores"]
    value = next(s["value"] for s in score if s["name"] == "after/skill")
    assert repr(value) in (tmp_path / "report" / "main.csv").read_text()
