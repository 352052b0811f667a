"""What is seen while a cell trains: the numbers from Jacobians and numpy, and the W&B run of a cell that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tracking import read, rows_of

from bench.moment import Moment
from bench.networks import initialised
from bench.plan import build, plan
from bench.studies import live
from bench.studies.cell import Cell

N, TEST = 24, 40
SETTINGS = ["task=staircase", "task.d=8", f"task.n_train={N}", f"task.n_test={TEST}", "model.width=16",
            "trainer.richness=1.0", "trainer.dtype=float64"]  # fmt: skip


def cell(*more: str) -> Cell:
    return build(plan([*SETTINGS, *more])[0].config)


def jacobian(net: torch.nn.Module, params: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """[n, parameters] and the outputs [n], one backward pass a sample."""
    leaves = {name: value.detach().double().requires_grad_() for name, value in params.items()}
    z = torch.func.functional_call(net.double(), leaves, (x.double(),))[:, 0]
    rows = [torch.autograd.grad(one, list(leaves.values()), retain_graph=True) for one in z]
    return np.array([torch.cat([g.flatten() for g in row]).numpy() for row in rows]), z.detach().numpy()


def r2(p: np.ndarray, f: np.ndarray) -> float:
    return 1 - ((p - f) ** 2).sum() / ((f - f.mean()) ** 2).sum()


@pytest.mark.parametrize("centred", [True, False])
def test_every_number_is_what_it_is_called(centred: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = cell("seeds.data=1", "seeds.init=2", f"trainer.centred={str(centred).lower()}")
    logged: list[Any] = []
    moments: list[Any] = []
    watcher = live.Watcher(one, logged.append, share=1e9)
    real = live.Live.look

    def look(self: live.Live, moment: Moment) -> None:
        moments.append({name: value[0].clone() for name, value in moment.params.items()})
        real(self, moment)

    monkeypatch.setattr(live.Live, "look", look)
    (trained,) = one.trainer.parts(one.model, one.tasks, one.members, watch=watcher)
    task, history = one.tasks[0], trained.history[0]
    x = torch.cat([task.x_train, task.x_test])
    gamma = one.trainer.gamma(one.model)
    start = initialised(one.trainer.network(one.model), [one.members[0].init_seed])[0]
    J_0, z_0 = jacobian(one.model, start, x)
    f_0 = np.zeros_like(z_0) if centred else z_0 / gamma
    K_0 = J_0 @ J_0[:N].T
    y, y_test = task.y_train[:, 0].double().numpy(), task.y_test[:, 0].double().numpy()
    rates, vectors = np.linalg.eigh(K_0[:N] / N)
    assert len(logged) > 10
    for rows, params in list(zip(logged, moments, strict=True))[3::4]:
        seen = rows[one.members[0].name]
        J, z = jacobian(one.model, params, x)
        K, f = J @ J[:N].T, f_0 + (z - z_0) / gamma
        steps = int(seen["steps"])
        assert seen["time"] == pytest.approx(float(history.steps[:steps].sum()))
        assert seen["loss"] == pytest.approx(float(history.loss[steps - 1]))
        assert seen["loss_time"] == pytest.approx(float(history.steps[: steps - 1].sum()))
        motion = np.linalg.norm(K[:N] - K_0[:N]) / np.linalg.norm(K_0[:N])
        assert seen["kernel_motion"] == pytest.approx(motion)
        assert seen["test_error"] == pytest.approx(((f[N:] - y_test) ** 2).sum() / (y_test**2).sum())
        # the jitter, 1e-10 of the mean diagonal, moves weak modes of the solution
        p = f_0[N:] + K[N:] @ np.linalg.solve(K[:N], f[:N] - f_0[:N])
        assert seen["match"] == pytest.approx(r2(p, f[N:]), abs=1e-5)
        left = np.prod(1 - np.outer(history.steps[:steps].numpy(), rates), 0)
        weights = vectors @ ((1 - left) / rates * (vectors.T @ (y - f_0[:N]))) / N
        assert seen["linearised_match"] == pytest.approx(r2(f_0[N:] + K_0[N:] @ weights, f[N:]), abs=1e-6)
        held_out, H = J[N:] @ J[N:].T, np.eye(TEST) - 1 / TEST
        inner, target = H @ held_out @ H, np.outer(H @ y_test, H @ y_test)
        cosine = (inner * target).sum() / np.linalg.norm(inner) / np.linalg.norm(target)
        assert seen["kernel_alignment_held_out"] == pytest.approx(cosine)


@pytest.mark.slow
def test_watching_changes_no_bit_and_keeps_to_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = cell("trainer.dtype=float32")
    whole = one.trainer.fit(one.model, one.tasks, one.members)
    for share, kernels in ((0.0, 2), (1e9, None)):
        logged: list[Any] = []
        watcher = live.Watcher(one, logged.append, share=share)
        (seen,) = one.trainer.parts(one.model, one.tasks, one.members, watch=watcher)
        assert torch.equal(seen.f_T, whole.f_T)
        assert all(torch.equal(seen.params[name], whole.params[name]) for name in whole.params)
        assert {name for rows in logged for name in rows} == {member.name for member in one.members}
        found = sum("kernel_motion" in row for rows in logged for row in rows.values())
        # the first network leaves the batch when it is done; until then it is looked at each time, or twice
        assert found == (kernels or sum(one.members[0].name in rows for rows in logged))


def test_a_kernel_that_cannot_be_had_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    one = cell("seeds.data=1", "seeds.init=1")

    def broken(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no\nmemory")

    monkeypatch.setattr(live, "empirical_ntk", broken)
    logged: list[Any] = []
    (trained,) = one.trainer.parts(one.model, one.tasks, one.members, watch=live.Watcher(one, logged.append))
    assert trained.status == ("done",)
    assert [r.getMessage() for r in caplog.records] == ["The kernel is not watched while training (no memory)."]
    assert len(logged) > 10


@pytest.mark.slow
def test_a_cell_that_is_killed_goes_on_with_its_wandb_run(tmp_path: Path) -> None:
    """Killed with ``kill -9`` and by SIGTERM, in the middle of training: three processes, one run, no step twice."""
    command = [
        sys.executable, "-m", "bench", *SETTINGS, "trainer.tolerance=0.0", "trainer.max_steps=5000",
        "trainer.step=0.05", "seeds.init=2", "seeds.data=1", "report=null", "tracking=offline",
    ]  # fmt: skip
    deaths = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(logged_rows(tmp_path))
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(logged_rows(tmp_path)) < before + 5:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.1)
        assert not list(tmp_path.glob("runs/*/trained/*.npz"))
        process.send_signal(number)
        process.wait()
        deaths.append(time.time())
        time.sleep(1.1)  # W&B names folders by the second
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    (file,) = tmp_path.glob("runs/*/wandb/offline-run-*/run-*.wandb")
    rows = list(rows_of(read(file)))
    steps = [row["_step"] for row in rows]
    assert steps == list(range(len(rows)))  # none twice, and none lost
    times = [row["_timestamp"] for row in rows]
    for dead in deaths:  # rows were logged while it trained, by each process
        assert times[0] < dead < times[-1]
    assert len({sum(at > dead for dead in deaths) for at in times}) == 3
    for quantity in ("loss_time", "time", "steps"):
        values = [row[key] for row in rows if (key := f"live/data0-init0-order0/{quantity}") in row]
        assert len(values) > 20
        assert values == sorted(set(values))
    assert sum("live/data0-init0-order0/match" in row for row in rows) >= 1
    assert sum("training/loss" in row for row in rows) > 20
    assert "scores/nrows" in rows[-1]
    again = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert again.returncode == 0
    assert list(tmp_path.glob("runs/*/wandb/offline-run-*/run-*.wandb")) == [file]
    assert not _alive(tmp_path)


def logged_rows(folder: Path) -> list[str]:
    return [line for path in folder.glob("runs/*/wandb/rows.jsonl") for line in path.read_text().splitlines()]


def _alive(folder: Path) -> list[str]:
    """Processes that work in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found
