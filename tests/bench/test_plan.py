"""``python -m bench.plan``: what is done, and estimates against theory and against what runs then took."""

import shutil
from dataclasses import replace

import hydra
import pytest
import torch
from test_run import SMALL, bench

from bench import store
from bench.plan import CONF, build, plan, state
from bench.plan.__main__ import duration, main, size, table
from bench.plan.estimate import Estimate, _bytes, estimates, lazy_steps
from bench.record import Record
from bench.train import Trainer
from bench.trained import members, seed_of
from models.mlp import mlp
from tasks.hypercube import staircase


def test_wrong_settings_are_one_sentence_and_exit_code_2(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["task=stairs"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "task" in captured.err


@pytest.mark.parametrize("accelerated", [False, True])
def test_steps_of_the_lazy_theory_are_those_of_an_exactly_linear_network(accelerated):
    """With only its read-out trained a network is its linearisation, so the count must be the trainer's own.

    The trainer asks for lambda_max from 128 points at most, here all of them; its loss is float64, and crosses the
    tolerance by whole steps: at most one step of difference.
    """
    tasks = [staircase(d=8, n_train=48, n_test=8, seed=seed_of("data", 0))]
    trainer = Trainer(readout_only=True, dtype="float64", tolerance=1e-3, accelerated=accelerated,
                      step=1.0 if accelerated else 1.5)  # fmt: skip
    trained = trainer.fit(mlp(8, 512, 1, 1), tasks, members(1, 1))
    kernel = trained.ntk[0, 0][:48, :, 0, 0]
    values, vectors = torch.linalg.eigh(kernel / 48)
    power = (vectors.T @ tasks[0].y_train[:, 0].double()).square()
    assert trained.status == ("done",)
    assert len(trained.history[0].steps) > 20
    assert abs(lazy_steps(trainer, values, power / power.sum()) - len(trained.history[0].steps)) <= 1


def test_steps_end_at_the_limit():
    values, power = torch.tensor([1.0, 1e-9], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert lazy_steps(Trainer(max_steps=700), values, power) == 700
    assert lazy_steps(Trainer(max_steps=700, accelerated=True, step=1.0), values, power) == 700


SWEPT = [
    ["experiment=width", "model.width=32,64"],
    ["-m", "task=digits", "model.width=8,16", "trainer.richness=ntk,1", "seeds={init: 2}", "++model.depth=2,1"],
    ["-m", "model=mlp", "model.width=8,16", "~compare.rivals", "trainer.levels=[]", "name='a b'"],
    ["-m", "experiment=quick", "model.width=8,12", "seeds.init=3", "seeds={init: 2}"],
    ["-m", "experiment=quick", "compare.after.targets=[y],[y,self]", "model.width=8", "hydra.sweep.subdir=x"],
]


@pytest.mark.parametrize("arguments", SWEPT, ids=lambda arguments: arguments[-1])
def test_a_planned_cell_is_what_hydra_composes_for_it(arguments, tmp_path, monkeypatch):
    """Cells of the same files are composed once, and their values put in: it must come to the same."""
    monkeypatch.chdir(tmp_path)
    overrides = [argument for argument in arguments if argument != "-m"]
    cells = plan(overrides, multirun="-m" in arguments)
    assert len({cell.overrides for cell in cells}) == len(cells) > 1
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for cell in cells:
            assert cell.config == hydra.compose("config", list(cell.overrides))


@pytest.mark.slow
def test_what_is_on_disk_is_told_and_priced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bench([*SMALL[1:-2], "model.width=16"], tmp_path).returncode == 0
    arguments = [*SMALL[1:-2], "model.width=16,24,32"]
    cells = plan(arguments, multirun=True)
    states = [state(cell) for cell in cells]
    assert [found.done for found in states] == [True, False, False]
    shutil.rmtree(cells[0].folder / "scores")
    (cells[0].folder / "record.json").unlink()
    assert state(cells[0]).note == "trained, to be scored"
    with store.lock(cells[1].folder):
        assert state(cells[1]).note == "another process is at work on it"
    more = plan([*SMALL[1:-2], "model.width=16", "seeds.init=4"])[0]
    assert state(more).note == "6 of 8 networks trained"
    before, rest = estimates([(more, state(more)), (more, replace(state(more), trained=0))], 0.0)
    assert before is not None
    assert rest is not None
    assert before.seconds < rest.seconds
    assert before.bytes == rest.bytes
    assert main(["-m", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "3 cells to run, 0 done" in printed
    assert "a short measurement just now" in printed
    assert "model.width=24" in printed
    assert not list(tmp_path.glob("runs/*w24*/trained"))
    assert main([*SMALL[1:-2], "model.width=8", "trainer.optimiser=adam", "trainer.rate=0.01"]) == 0
    assert "<100,000" in capsys.readouterr().out


@pytest.mark.slow
def test_records_of_earlier_runs_give_the_speed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = [*SMALL[1:-2], "model.width=16"]
    assert bench(one, tmp_path).returncode == 0
    folder = plan(one)[0].folder
    environment, steps = store.read_json(folder / "environment.json"), store.read_record(folder).card["steps"]
    other = plan([*one, "trainer.richness=0.1"])[0]
    store.write_json(folder / "environment.json", {**environment, "split": {**environment["split"], "training": 1e6}})
    priced = estimates([(other, state(other))], 0.0)[0]
    assert priced is not None
    assert priced.source == "records"
    # the same networks, so the same seconds a step, times the steps of this richness
    assert priced.seconds == pytest.approx(1e6 * priced.steps / steps, rel=1e-3)
    for change in ({"processor": "another"}, {"trained_all": False}):
        store.write_json(folder / "environment.json", {**environment, **change})
        again = estimates([(other, state(other))], 0.0)[0]
        assert again is not None
        assert again.source == "measured"


def test_a_study_is_priced_by_what_it_took_when_it_last_ran(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment=peak", "tracking=disabled"]) == 0
    assert "not known before it ran once" in capsys.readouterr().out
    folder = plan(["experiment=peak"])[0].folder
    store.write_record(folder, Record(folder.name, "done", "", {"seconds": 200.0, "code": "of yesterday"}))
    assert main(["experiment=peak", "tracking=disabled"]) == 0
    printed = capsys.readouterr().out
    assert "1 cells to run, 0 done. About 3.3 min of one process" in printed
    assert "Studies: what they took when they last ran." in printed
    assert "lazy theory" not in printed


@pytest.mark.slow
def test_the_estimate_is_within_a_factor_of_three(tmp_path, monkeypatch):
    """CPU seconds on a machine that others may use: two runs of one cell were seen to differ by 1.5 there."""
    monkeypatch.chdir(tmp_path)
    cell = ["task=staircase", "trainer.richness=0.03", "model.width=64", "tracking=disabled", "report=null"]
    planned = plan(cell)[0]
    estimate = estimates([(planned, state(planned))], 0.0)[0]
    assert estimate is not None
    assert bench(cell, tmp_path).returncode == 0
    took = store.read_json(planned.folder / "environment.json")["cpu_seconds"]
    assert 1 / 3 < estimate.seconds / took < 3
    assert 0.5 < estimate.steps / store.read_record(planned.folder).card["steps"] < 2


def test_figures_are_written_with_two_digits():
    assert [duration(x) for x in (0.04, 3.21, 25.4, 119, 130, 8000, 2e5)] == [
        "0.0 s", "3.2 s", "25 s", "119 s", "2.2 min", "2.2 h", "2.3 d"]  # fmt: skip
    assert [size(x) for x in (5.5e8, 1.2e9, 3.4e13)] == ["550 MB", "1.2 GB", "34 TB"]


@pytest.mark.parametrize(("bound", "says"), [(True, "At most 60 s"), (False, "About 60 s")])
def test_a_sum_of_bounds_is_called_one(bound, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = plan(["task=staircase", "model.width=8"])
    cost = Estimate(60.0, 1e9, 700, "measured", bound)
    assert says in table(cells, [state(cells[0])], [cost])


def test_the_memory_of_a_dense_schedule_grows_with_its_steps(tmp_path, monkeypatch):
    """By the parameters of every point: so many more bytes from 100 to 10,100 steps."""
    monkeypatch.chdir(tmp_path)
    settings = [*SMALL[1:-2], "trainer.schedule=dense", "trainer.constant=true"]
    (planned,) = plan(settings)
    cell = build(planned.config)
    parameters = sum(parameter.numel() for parameter in cell.model.parameters())
    more = _bytes(cell, 10_100) - _bytes(cell, 100)
    assert more == 10_000 * 4 * parameters * len(cell.members)
