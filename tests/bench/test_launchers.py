"""Every launcher: a cell that fails or dies does not stop the others, and a killed command is taken up again."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_run import bench, contents

from bench import progress, store
from bench.launch import launch
from bench.plan import PlanError, plan
from bench.savepoint import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [
    "-m", "task=staircase", "task.d=8", "task.n_train=24", "task.n_test=40", "trainer.tolerance=1e-2",
    "tracking=disabled", "model._target_=mine.network", "seeds.init=2",
]  # fmt: skip
PLUGINS = (("ray", "hydra_ray_launcher"), ("slurm", "hydra_submitit_launcher"))
sys.path.insert(0, str(ROOT / "tools"))
import local_slurm  # noqa: E402


def folder_of(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("mortal.py"), folder / "mine.py")
    return folder


def results(folder: Path, widths: str) -> dict[str, bytes]:
    """The files of these cells that no launcher and no clock decides."""
    return {
        path: content
        for path, content in contents(folder).items()
        if any(f"-w{width}-" in path for width in widths.split(",")) and "/.hydra/" not in path
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where widths 12, 14 and 18 ran in one process, and nothing happened to it."""
    folder = folder_of(tmp_path_factory.mktemp("undisturbed"), "sweep")
    (folder / "died").touch()
    done = bench([*SWEEP, "model.width=12,14,18", "hydra/launcher=basic"], folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=["joblib", "ray", "slurm"])
def launcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "ray" and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("Ray is not installed: pip install -c constraints.txt -e '.[ray]'")
    if request.param != "slurm":
        yield request.param
        return
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("submitit is not installed: pip install -c constraints.txt -e '.[slurm]'")
    if missing := local_slurm.missing():
        pytest.skip(f"no Slurm here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    with (
        local_slurm.local_slurm(tmp_path_factory.mktemp("slurm")) as found,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", found["SLURM_CONF"])
        patch.setenv("PATH", found["PATH"])
        yield request.param


def test_a_command_killed_while_it_ended_does_not_end_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, every command may have the same number."""
    monkeypatch.chdir(tmp_path)
    cells = plan(["task=staircase", "task.d=8", "task.n_train=24", "task.n_test=40"])
    left = tmp_path / "runs" / f".stop-{os.getpid()}"
    store.write_text(left, "")
    stopping: list[bool] = []
    before = dict(os.environ)
    launch(cells, ["hydra/launcher=joblib"], [], lambda arguments: stopping.append(progress.stopping()))
    assert stopping == [False]
    assert not left.exists()
    assert dict(os.environ) == before  # else what is started later would obey it


def test_a_launcher_that_is_not_here_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    installed = {name: importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None for name, plugin in PLUGINS}
    for name, here in installed.items():
        if name == "slurm" and here:
            with pytest.raises(PlanError, match="sbatch"):
                plan([*SWEEP[1:], "model.width=12", "model._target_=models.mlp.mlp", "hydra/launcher=slurm"])
        elif not here:
            with pytest.raises(PlanError, match=re.escape(f"'.[{name}]'")):
                plan([*SWEEP[1:], "model.width=12", "model._target_=models.mlp.mlp", f"hydra/launcher={name}"])
    with pytest.raises(PlanError, match="launcher"):
        plan(["hydra/launcher=rai"])


@pytest.mark.slow
def test_cells_that_fail_or_die_do_not_stop_the_others(launcher: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "sweep")
    done = bench([*SWEEP, "model.width=12,13,14,17,18", f"hydra/launcher={launcher}"], folder)
    assert done.returncode == 1, done.stderr
    # 14 died once, with its process, and went on in another
    assert results(folder, "12,14,18") == results(undisturbed, "12,14,18")
    report = subprocess.run(
        [sys.executable, "-m", "bench.report"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert report.returncode == 1
    problems = {line.partition("-w")[2][:2]: line for line in report.stdout.splitlines() if "not done" in line}
    assert set(problems) == {"13", "17"}
    assert "failed: RuntimeError: what a model may do" in problems["17"]
    assert "failed: Its process died" in problems["13"]
    assert not list(folder.rglob(".apart")) + list(folder.rglob(".progress"))


@pytest.mark.slow
def test_a_killed_command_is_taken_up_again(launcher: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "sweep")
    (folder / "slow").touch()
    (folder / "died").touch()
    arguments = [*SWEEP, "model.width=12,14,18", f"hydra/launcher={launcher}"]
    command = subprocess.Popen([sys.executable, "-m", "bench", *arguments], cwd=folder,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    until(lambda: bool(list(folder.glob("runs/*/.progress"))))
    time.sleep(1)
    os.kill(command.pid, signal.SIGKILL)  # the command alone, not its workers
    command.wait()
    assert not list(folder.glob("runs/*/record.json"))
    (folder / "slow").unlink()
    done = bench(arguments, folder)
    if launcher == "slurm" and done.returncode == 1:  # its orphans are jobs of their own, and are left to finish
        assert "another process is at work on it" in done.stdout.lower()
        until(lambda: not any(store.held(path) for path in folder.glob("runs/staircase*")))
        done = bench(arguments, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(folder, "12,14,18") == results(undisturbed, "12,14,18")
    assert all(store.read_record(path.parent).status == "done" for path in folder.glob("runs/*/record.json"))


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["command", "group"])
def test_sigterm_is_handed_on_to_the_workers(launcher: str, undisturbed: Path, tmp_path: Path, whom: str) -> None:
    """What is at work is kept to the step, not only to its last state a minute before; and nothing new is begun."""
    if launcher == "slurm":
        pytest.skip("the jobs of Slurm are ended by Slurm, with a SIGTERM of their own")
    if launcher == "ray" and whom == "group":
        pytest.skip("Ray's own processes end by it, and with them the workers")
    folder = folder_of(tmp_path, "sweep")
    (folder / "slow").touch()
    (folder / "died").touch()
    arguments = [*SWEEP, "model.width=12,14,18", f"hydra/launcher={launcher}"]
    command = subprocess.Popen([sys.executable, "-m", "bench", *arguments], cwd=folder, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    until(lambda: bool(list(folder.glob("runs/*/.progress"))))
    time.sleep(2)
    if whom == "command":
        command.send_signal(signal.SIGTERM)
    else:
        os.killpg(command.pid, signal.SIGTERM)
    assert command.wait(timeout=60) == EXIT_CODE
    begun = [store.read_record(path.parent) for path in folder.glob("runs/*/record.json")]
    assert begun
    assert all(record.status == "interrupted" for record in begun)
    assert len(list(folder.glob("runs/*/trained/.*.state"))) == len(begun)
    assert not list(folder.glob("runs/.stop-*")) + list(folder.glob("runs/*/.progress"))
    (folder / "slow").unlink()
    done = bench(arguments, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(folder, "12,14,18") == results(undisturbed, "12,14,18")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
