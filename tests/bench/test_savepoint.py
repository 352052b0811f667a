"""Training that is stopped in the middle, by a signal or by ``kill -9``, ends with the bits of an undisturbed one."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import descent, grouping, store
from bench.savepoint import EXIT_CODE, Interrupted, Savepoint, sigterm
from bench.studies.cell import train
from bench.train import Trainer
from bench.trained import Member, Trained, members, seed_of
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task

CASES = {
    "adaptive": {"tolerance": 1e-3},
    "a step too long": {"richness": 3.0, "step": 3.9, "tolerance": 1e-3, "max_steps": 60},
    "accelerated": {"accelerated": True, "step": 1.0, "tolerance": 1e-3},
    "sgd": {"optimiser": "sgd", "batch_size": 8, "momentum": 0.5, "step": 0.5, "max_steps": 90},
    "adam": {"optimiser": "adam", "rate": 0.01, "batch_size": 8, "max_steps": 90},
    "dense": {"schedule": "dense", "constant": True, "tolerance": 0.0, "max_steps": 30, "weight_decay": 1e-3},
}


def tasks() -> list[Task]:
    return [staircase(d=8, n_train=24, n_test=30, seed=seed_of("data", i)) for i in range(2)]


def network():
    return mlp(8, 16, 1, 1, b_std=0.4, readout_b_std=0.3)


def same(one: Trained, other: Trained) -> None:
    assert one.status == other.status
    assert torch.equal(one.f_T, other.f_T)
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
    for first, second in zip(one.history, other.history, strict=True):
        for name, value in vars(first).items():
            torch.testing.assert_close(value, getattr(second, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_stopped_every_few_iterations_it_ends_with_the_same_bits(case, tmp_path):
    trainer = Trainer(**{"richness": 1.0, **CASES[case]})
    everyone = [*members(2, 2), Member(0, 0, richness=0.3), Member(0, 0, order=1)]
    whole = trainer.fit(network(), tasks(), everyone)
    for stops in range(200):  # noqa: B007
        asked = iter([False] * 17 + [True])
        savepoint = Savepoint(tmp_path / "state", stop=lambda asked=asked: next(asked))
        with contextlib.suppress(Interrupted):
            (part,) = trainer.parts(network(), tasks(), everyone, savepoint=lambda batch, s=savepoint: s)
            break
    assert stops > 0
    same(part, whole)


def test_a_full_disk_is_logged_once_and_training_goes_on(tmp_path, monkeypatch, caplog):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.savepoint.store.write_bytes", full)
    trainer = Trainer(richness=1.0, max_steps=10, tolerance=0.0)
    savepoint = Savepoint(tmp_path / "state", seconds=0.0)
    (part,) = trainer.parts(network(), tasks(), members(1, 2), savepoint=lambda batch: savepoint)
    same(part, trainer.fit(network(), tasks(), members(1, 2)))
    assert [record.levelname for record in caplog.records if "No space left" in record.getMessage()] == ["WARNING"]
    with pytest.raises(Interrupted):
        Savepoint(tmp_path / "state", stop=lambda: True).look("key", dict)


def test_a_member_that_an_older_version_wrote_is_trained_again(tmp_path):
    """Without the names of its batch, or a part of its history, nothing says that it may be used."""
    trainer = Trainer(richness=1.0, max_steps=5, tolerance=0.0)
    cell = SimpleNamespace(trainer=trainer, model=network(), tasks=tasks(), members=members(1, 2))
    whole = train(cell, tmp_path, lambda share: None)
    path = tmp_path / f"{cell.members[0].name}.npz"
    written, arrays = path.read_bytes(), store.read_npz(path)
    for lacking in ("batch", "momenta"):
        store.write_npz(path, {name: value for name, value in arrays.items() if name != lacking})
        same(train(cell, tmp_path, lambda share: None), whole)
        assert path.read_bytes() == written


def test_the_memory_that_is_free_when_it_resumes_does_not_decide_who_trains_together(tmp_path, monkeypatch):
    """Begun where two networks fit at once, stopped in the second batch, and resumed where all would."""
    trainer = Trainer(richness=1.0, max_steps=20, tolerance=0.0)
    cell = SimpleNamespace(trainer=trainer, model=network(), tasks=tasks(), members=members(1, 7))
    free, sizes, real = {"now": 2.5}, [], Trainer._fit

    def room(memory, outs):
        return free["now"] * grouping.Cost.of(network(), tasks()[0], 4, trainer.kept(20)).memory

    def fit(self, model, draws, batch, *rest):
        sizes.append(len(batch))
        return real(self, model, draws, batch, *rest)

    monkeypatch.setattr(grouping, "budget", room)
    monkeypatch.setattr(Trainer, "_fit", fit)
    whole = train(cell, tmp_path / "whole", lambda share: None)
    assert sizes == [2, 2, 2, 1]
    asked = iter([False] * 30 + [True] * 1000)
    with pytest.raises(Interrupted):
        train(cell, tmp_path / "stopped", lambda share: None, lambda: next(asked))
    free["now"], sizes[:] = 100, []
    same(train(cell, tmp_path / "stopped", lambda share: None), whole)
    assert sizes == [2, 2, 1]  # all five at once without the batches on disk


def test_every_point_is_kept_only_while_there_is_room(monkeypatch):
    """Halved while several train together; alone, one sentence."""
    trainer = Trainer(richness=1.0, schedule="dense", constant=True, tolerance=0.0, max_steps=70)
    whole = trainer.fit(network(), tasks(), members(1, 2))
    assert whole.snapshots == trainer.kept(70) == 71
    one_point = sum(parameter.numel() for parameter in network().parameters()) * 4
    monkeypatch.setattr(descent, "free_memory", lambda device: 2 * descent.ROOM_EVERY * one_point)
    sizes, real = [], Trainer._fit

    def fit(self, model, draws, batch, *rest):
        sizes.append(len(batch))
        return real(self, model, draws, batch, *rest)

    monkeypatch.setattr(Trainer, "_fit", fit)
    assert trainer.fit(network(), tasks(), members(1, 2)).snapshots == 71
    assert sizes == [2, 1, 1]
    monkeypatch.setattr(descent, "free_memory", lambda device: one_point)
    with pytest.raises(MemoryError, match=r"schedule=dense keeps every point.*after 31 steps"):
        trainer.fit(network(), tasks(), members(1, 1))


def test_a_state_of_another_descent_or_a_damaged_one_is_not_used(tmp_path):
    def part(trainer: Trainer, stop: int) -> Trained:
        asked = iter([False] * stop + [True] * 1000)
        savepoint = Savepoint(tmp_path / "state", stop=lambda: next(asked))
        (found,) = trainer.parts(network(), tasks(), members(1, 2), savepoint=lambda batch: savepoint)
        return found

    trainer = Trainer(richness=1.0, max_steps=10, tolerance=0.0)
    with pytest.raises(Interrupted):
        part(Trainer(richness=1.0, step=0.5, max_steps=10, tolerance=0.0), 5)
    assert (tmp_path / "state").exists()
    same(part(trainer, 100), trainer.fit(network(), tasks(), members(1, 2)))
    (tmp_path / "state").write_bytes(b"PK half of it")
    same(part(trainer, 100), trainer.fit(network(), tasks(), members(1, 2)))


def test_the_state_is_written_as_often_as_asked(tmp_path):
    written = []

    class Counting(Savepoint):
        def look(self, key, state):
            before = self.written
            super().look(key, state)
            written.append(self.written != before)

    trainer = Trainer(richness=1.0, max_steps=20, tolerance=0.0)
    for seconds, expected in ((1e9, 0), (0.0, 21)):
        written.clear()
        list(
            trainer.parts(network(), tasks(), members(1, 1), savepoint=lambda b, s=seconds: Counting(tmp_path / "s", s))
        )
        assert sum(written) == expected


SCRIPT = """
import sys
import torch
from pathlib import Path
from bench.savepoint import Savepoint
from tests.bench.test_savepoint import Trainer, members, network, tasks
torch.set_num_threads(1)
out = Path(sys.argv[1])
steps = int(sys.argv[2])
trainer = Trainer(richness=1.0, step=0.05, tolerance=0.0, max_steps=steps, schedule="loss", levels=[0.5, 0.1])
(part,) = trainer.parts(
    network(), tasks(), members(2, 2), lambda share: (out / "share").write_text(str(share)),
    lambda batch: Savepoint(out / "state", seconds=0.1),
)
torch.save({"f_T": part.f_T, "params": part.params, "loss": [history.loss for history in part.history]}, out / "end")
"""


def run_script(folder: Path, steps: int) -> subprocess.Popen:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(steps)], env=environment, cwd=root)


def wait_for(path: Path, after: float = 0.0, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_mtime > after):
        assert time.monotonic() < deadline, f"{path.name} is not written"
        assert process is None or process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_long_member_it_ends_with_the_same_bits(tmp_path):
    steps = 2000  # about a second: the state is written some ten times
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    for _ in range(2):
        state = killed / "state"
        process = run_script(killed, steps)
        wait_for(state, state.stat().st_mtime if state.exists() else 0.0, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    share = float((killed / "share").read_text())
    assert 0 < share < 1
    assert run_script(whole, steps).wait() == 0
    assert run_script(killed, steps).wait() == 0
    ends = [torch.load(folder / "end", weights_only=True) for folder in (whole, killed)]
    assert torch.equal(ends[0]["f_T"], ends[1]["f_T"])
    assert all(torch.equal(ends[0]["params"][name], ends[1]["params"][name]) for name in ends[0]["params"])
    assert all(torch.equal(one, other) for one, other in zip(ends[0]["loss"], ends[1]["loss"], strict=True))


@pytest.mark.slow
def test_sigterm_leaves_an_interrupted_record_and_a_state_and_the_same_command_goes_on(tmp_path):
    command = [
        sys.executable, "-m", "bench", "task=staircase", "task.d=8", "task.n_train=24", "task.n_test=40",
        "model.width=32", "trainer.tolerance=0.0", "trainer.max_steps=6000", "trainer.step=0.05",
        "tracking=disabled", "seeds.init=2",
    ]  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    assert subprocess.run(command, cwd=whole, check=False, capture_output=True).returncode == 0
    process = subprocess.Popen(command, cwd=stopped, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(stopped.glob("runs/*/.progress")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == EXIT_CODE
    (record,) = stopped.glob("runs/*/record.json")
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert list(stopped.glob("runs/*/trained/.*.state"))
    assert subprocess.run(command, cwd=stopped, check=False, capture_output=True).returncode == 0
    assert not list(stopped.glob("runs/*/trained/.*.state"))
    for path in whole.glob("runs/*/trained/*.npz"):
        assert (stopped / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_sigterm_is_asked_and_its_handler_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) == before
    answers = []

    def other_thread() -> None:
        with sigterm() as stop:
            answers.append(stop())

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert answers == [False]


def test_out_of_memory_halves_the_batch_and_says_so_once(monkeypatch, caplog):
    trainer = Trainer(richness=1.0, max_steps=10, tolerance=0.0, dtype="float64")
    whole = trainer.fit(network(), tasks(), members(1, 7))
    real, sizes = Trainer._fit, []

    def scarce(self, model, draws, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, model, draws, batch, *rest)

    monkeypatch.setattr(Trainer, "_fit", scarce)
    with caplog.at_level(logging.WARNING):
        halved = trainer.fit(network(), tasks(), members(1, 7))
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert len(caplog.records) == 1
    assert halved.members == whole.members
    torch.testing.assert_close(halved.f_T, whole.f_T, rtol=1e-9, atol=1e-9)

    def broken(self, *rest):
        raise RuntimeError("shapes disagree")

    monkeypatch.setattr(Trainer, "_fit", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.fit(network(), tasks(), members(1, 2))
