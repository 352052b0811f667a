"""The code of docs/ntk.md runs as printed, on a float32 network."""

import re
from pathlib import Path

import pytest
import torch

from bench.ntk import empirical_ntk
from models.mlp import mlp

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "ntk.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("c", [1, 2])
def test_the_page_runs(c, capsys):
    torch.manual_seed(0)
    net, x = mlp(8, 64, 2, c, b_std=0.1), torch.randn(40, 8)
    members = {name: torch.stack([value.detach(), -value.detach()]) for name, value in net.named_parameters()}
    names = {"net": net, "x": x, "x1": x, "x2": x[:5], "members": members, "y": x[:, :c], "ridge": 1.0}
    exec(CODE[0], names)
    assert names["K"].shape == (2, 40, 40, c, c)
    names["K"] = empirical_ntk(net, x)
    exec(CODE[1], names)
    assert len(CODE) == 2
