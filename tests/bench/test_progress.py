"""Progress through files: what a cell's process leaves, and what the command's own process says of it."""

import time

import pytest

from bench import progress, store
from bench.record import Record
from bench.train import Trainer, part_of
from bench.trained import members, seed_of
from models.mlp import mlp
from tasks.hypercube import staircase


def end(folder, status="done", reason=""):
    store.write_json(folder / progress.ENVIRONMENT, {"wall_seconds": 1.25})
    store.write_record(folder, Record(folder.name, status, reason, {}))


def test_a_line_for_every_cell_that_ends_while_watched(tmp_path, capsys):
    folders = [tmp_path / name for name in ("old", "new", "bad", "silent")]
    end(folders[0])
    with progress.watch([progress.Job(folder, 1.0) for folder in folders]):
        time.sleep(0.2)  # what was there before counts for nothing
        end(folders[1])
        end(folders[2], "failed", "ValueError: no.")
    assert capsys.readouterr().out.splitlines() == ["new: done in 1.2 s.", "bad: failed in 1.2 s. ValueError: no."]


def test_the_trainer_reports_its_way_from_nothing_to_all():
    seen: list[float] = []
    tasks = [staircase(d=8, n_train=24, n_test=8, seed=seed_of("data", 0))]
    Trainer(richness=1.0).fit(mlp(8, 32, 1, 1), tasks, members(1, 2), seen.append)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert 0.5 < seen[-1] <= 1


def test_a_part_of_the_members_is_that_part_of_the_work():
    seen: list[float] = []
    part_of(seen.append, 2, 1, 4)(0.5)
    assert seen == [pytest.approx(2.5 / 4)]
    part_of(None, 0, 1, 1)(0.5)


def test_a_full_disk_does_not_stop_the_work(tmp_path):
    report = progress.reporter(tmp_path / "not there")
    report(0.5)
    folder = tmp_path / "there"
    folder.mkdir()
    progress.reporter(folder)(0.25)
    assert float((folder / progress.FILE).read_text()) == 0.25
    progress.clear(folder)
    progress.clear(folder)
    assert not list(folder.iterdir())
