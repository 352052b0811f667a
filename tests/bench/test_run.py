"""``python -m bench`` from the outside: settings refused before training, results, resumption."""

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench import run, store, workers
from bench.plan import CONF, PlanError, plan
from bench.plan import __main__ as plan_command

SMALL = [
    "-m", "task=staircase", "task.d=8", "task.n_train=24", "task.n_test=40", "trainer.tolerance=1e-2",
    "tracking=disabled", "model.width=16,24", "seeds.init=2",
]  # fmt: skip


CELLS = {
    "after_kernel": 27, "cross_entropy": 9, "weight_decay": 3, "width": 16, "cnn": 4, "quick": 3, "pure_modes": 3,
    "convolution": 3, "mimic_curves": 2, "training_alignment": 2,
}  # fmt: skip


def bench(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the runs, timings and environment aside."""
    kept = [
        p
        for p in (folder / "runs").rglob("*")
        if p.is_file() and p.name not in ("environment.json", ".lock", "multirun.yaml")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if not path.name.endswith(".tmp")}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("task=stairs", "task"), ("model=transformer", "model"), ("model.width=-3", "width"),
        ("model.activation=rleu", "activation"), ("task.n_train=100000", "n_train"),
        ("trainer.richness=-1", "rich"),
        ("trainer.nope=1", "nope"), ("seeds.init=0", "seeds.init"), ("tracking.mode=cloud", "tracking"),
        ("runs=/dev/null/x", "runs"), ("model=cnn", "images"), ("model.width=16,32", "-m"),
        ("compare.after.targets=[f_T]", "targets"), ("compare.after.base=f_T", "any kernel matches"),
        ("compare.infinite.ridge=-1", "ridge"), ("seeds.data=many", "seeds.data"), ("report=/dev/null/x", "report"),
        ("force=perhaps", "force"), ("+speed=fast", "speed"), ("trainer.device=cuda:7", "device"),
        ("trainer.device=tpu", "device"),
        ("seeds=12", "seeds.data and seeds.init"), ("study=foo", "experiment=.*peak"),
        ("trainer=3", "trainer '3'. .*adam"), ("task=null", "Unknown task 'null'. Available"),
        ("trainer.centred=no", "trainer.centred must be true or false"),
        ("trainer.constant=off", "trainer.constant must be true or false"),
        ("compare.rivals.base=foo", "compare.rivals.base must be init or zero"),
        ("trainer.loss=logistic", "use mse"), ("trainer.loss=softmax", "use mse"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence_that_names_the_field(override, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=named) as caught:
        plan([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("loss", "advised"), [("softmax", "logistic"), ("logistic", "")])
def test_the_loss_that_is_advised_is_one_that_these_labels_take(loss, advised, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["task=digits", "model.width=8", f"trainer.loss={loss}"]
    if not advised:
        assert len(plan(arguments)) == 1
        return
    with pytest.raises(PlanError, match=f"use {advised}"):
        plan(arguments)


def test_a_bad_last_cell_is_found_before_the_first_trains(tmp_path):
    done = bench([*SMALL[:-2], "model.width=16,-1"], tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/trained"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if name == "cnn":
        monkeypatch.setenv("WIDEBENCH_DATA", str(request.getfixturevalue("data_folder")))
    assert len(plan([f"experiment={name}"])) == CELLS.get(name, 1)


def test_the_command_line_replaces_a_swept_axis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(plan(["experiment=after_kernel", "model.width=8"])) == 9


@pytest.mark.parametrize("main", [run.main, plan_command.main])
def test_arguments_that_do_not_say_what_is_done_keep_the_default_experiment(main, monkeypatch):
    def seen(overrides, multirun=False):
        raise PlanError(f"{multirun} {' '.join(overrides)}")

    monkeypatch.setattr(sys.modules[main.__module__], "plan", seen)
    for arguments, meant in (
        ([], "False experiment=after_kernel"),
        (
            ["tracking=disabled", "runs=x", "report=null", "force=true", "seeds.data=1", "hydra/launcher=joblib"],
            "after",
        ),
        (["-m", "+hydra.launcher.n_jobs=1"], "True experiment=after_kernel +hydra"),
        (["task=digits", "runs=x"], "False task=digits runs=x"),
        (["experiment=quick", "seeds.init=1"], "False experiment=quick seeds.init=1"),
    ):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert main(arguments) == 2
        assert meant in err.getvalue()


@pytest.mark.parametrize("main", [run.main, plan_command.main])
@pytest.mark.parametrize("arguments", [["--config-dir=conf", "task=cubes"], ["-cd", "conf"], ["--run"], ["foo"]])
def test_what_would_go_round_the_plan_is_refused(main, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert arguments[0].partition("=")[0] in captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job", "task=digits"], ["--cfg=job", "--resolve"]])
def test_hydra_shows_what_it_is_asked_for(arguments: list[str], tmp_path: Path) -> None:
    shown = bench(arguments, tmp_path)  # in a process of its own: Hydra's logging would stay, and silence this one's
    assert shown.returncode == 0, shown.stderr
    assert "task" in shown.stdout


def test_the_method_is_a_setting_and_its_default_names_no_other_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["task=staircase", "model.width=8"]
    default, loop, before = (plan([*small, *more])[0] for more in ([], ["trainer.method=loop"], ["~trainer.method"]))
    assert default.config.trainer.method == "auto"
    assert default.name == before.name
    assert default.settings == before.settings
    assert loop.settings["trainer"]["method"] == "loop"
    assert loop.name != default.name


OWN = "_target_: tasks.hypercube.staircase\nd: 8\ndegree: 2\nn_train: 16\nn_test: 24\nseed: 0\nnoise: 0.0\n"


def test_settings_of_the_current_folder_are_found(tmp_path, monkeypatch):
    file = tmp_path / "conf" / "task" / "cubes.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    cell = plan(["task=cubes"])[0]
    assert cell.config.task.n_train == 16
    assert cell.config.model._target_  # beside the package's own
    monkeypatch.chdir(CONF.parent)
    with pytest.raises(PlanError, match="Unknown task 'cubes'"):
        plan(["task=cubes", f"runs={tmp_path}", f"report={tmp_path}"])


@pytest.mark.slow
def test_workers_find_the_settings_of_the_current_folder(tmp_path):
    file = tmp_path / "conf" / "task" / "cubes.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OWN)
    small = ["trainer.tolerance=1e-1", "tracking=disabled", "report=null", "seeds.data=1", "seeds.init=1"]
    done = bench(["-m", "task=cubes", "model.width=8,12", "hydra/launcher=joblib", *small], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 2
    # Both cells' workers came from one process that had imported everything, and what that took is counted.
    if len(tempfile.gettempdir()) > workers.LONGEST:
        pytest.skip("the folder of temporary files has too long a path for a socket in it")
    servers = {store.read_json(file)["server"] for file in tmp_path.glob("runs/*/environment.json")}
    assert len(servers) == 1
    assert float(servers.pop().split()[1]) > 0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert bench(SMALL, whole).returncode == 0
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", *SMALL], cwd=killed, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(moments.uniform(2.0, 9.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert bench(SMALL, killed).returncode == 0
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_more_seeds_train_only_those(tmp_path):
    assert bench(SMALL, tmp_path).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/*.npz")}
    assert before
    assert bench(SMALL, tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert bench([*SMALL[:-1], "seeds.init=3"], tmp_path).returncode == 0
    trained = [path for path in before if path.parent.name == "trained"]
    assert all(path.stat().st_mtime_ns == before[path] for path in trained)
    records = [store.read_record(path.parent) for path in tmp_path.glob("runs/*/record.json")]
    assert [record.card["members_scored"] for record in records] == [6, 6]


@pytest.mark.slow
def test_damaged_files_are_made_again(tmp_path):
    one = [*SMALL[1:-2], "model.width=16"]
    assert bench(one, tmp_path).returncode == 0
    whole = contents(tmp_path)
    folder = next(tmp_path.glob("runs/*-w16-*"))
    (folder / "trained" / "data0-init1-order0.npz").write_bytes(b"PK half of it")
    (folder / "scores" / "after.json").write_text("junk")
    (folder / "scores" / "after.npz").write_bytes(b"")
    (folder / "record.json").write_text('{"schema": 1')
    (folder / "config.yaml").write_text("a: [")
    (folder / "environment.json").write_text("")
    assert bench(one, tmp_path).returncode == 0
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_a_finished_cell_is_tracked_when_that_is_asked_for_later(tmp_path):
    one = [*SMALL[1:-2], "model.width=16"]
    assert bench(one, tmp_path).returncode == 0
    assert not list(tmp_path.glob("runs/*/wandb"))
    before = contents(tmp_path)
    for _ in range(2):
        done = bench([*(word for word in one if "tracking" not in word), "tracking=offline"], tmp_path)
        assert done.returncode == 0
        assert len(list(tmp_path.glob("runs/*/wandb/offline-run-*"))) == 1
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
