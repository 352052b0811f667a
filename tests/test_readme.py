"""The README's code runs as it stands, and its commands name settings that exist."""

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.plan import plan

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"python -m bench (?!\.)([^`#\n]*)", README.replace("\\\n", ""))


def test_the_five_lines_score_two_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, x_test = torch.randn(70, 5, generator=torch.Generator().manual_seed(0)).split([40, 30])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    start = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        (net(x) - x[:, :1]).square().mean().backward()
        optimiser.step()
    names = {"net_at_start": start, "net_trained": net, "x": x, "y": x[:, :1], "x_test": x_test}
    exec(CODE[0], {**names, "y_test": x_test[:, :1]})
    assert "after kernel" in capsys.readouterr().out
    assert (tmp_path / "page.html").exists()


def test_the_parts_work_alone(capsys):
    names: dict = {}
    exec(CODE[1] + CODE[2], names)
    assert {"K", "K_0", "trained", "spectrum"} <= set(names)
    printed = capsys.readouterr().out
    assert "after/skill" in printed
    assert "infinite_ntk/skill" in printed


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE[3])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = ["task._target_=mine.cubes", "~task.d", "~task.degree", "~task.noise", "task.n_train=32"]
    assert plan(settings)[0].card["task"] == "cubes"


@pytest.mark.parametrize("command", sorted({" ".join(command.split()) for command in COMMANDS}))
def test_every_command_plans(command, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    words = [w for w in shlex.split(command) if w != "trainer.device=cuda"]
    if "task=cubes" in words:
        pytest.skip("the reader's own task")
    if any("cifar10" in w or w == "experiment=cnn" for w in words):
        monkeypatch.setenv("WIDEBENCH_DATA", str(request.getfixturevalue("data_folder")))
    assert plan([w for w in words if w != "-m"], multirun="-m" in words)
