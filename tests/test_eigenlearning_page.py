"""The code of docs/eigenlearning.md runs as it stands, its claims exist with those verdicts, its commands plan."""

import re
from pathlib import Path

import pytest

from bench.claims import Claim, claims
from bench.plan import plan

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "eigenlearning.md").read_text()
ROWS = re.findall(r"^\| \d+\w? \| ([^|]*) \| [^|]* \| ([^|]*) \|$", PAGE, re.MULTILINE)


def test_the_code_runs() -> None:
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), names)
    assert names["found"].test_mse.shape == (3,)


def test_verdicts_are_those_on_record() -> None:
    known = {name: item for name, item in claims().items() if isinstance(item, Claim)}
    listed = set()
    for cell, verdict in ROWS:
        for name in re.findall(r"`([\w-]+)`", cell):
            listed.add(f"eigenlearning-{name}")
            if f"eigenlearning-{name}" in known:
                recorded = known[f"eigenlearning-{name}"].recorded
                assert ("refuted" in verdict) == (recorded == "refuted"), name
    assert {name for name in known if name.startswith("eigenlearning-")} <= listed


@pytest.mark.parametrize("command", re.findall(r"python -m bench ([^`#\n]*)", PAGE))
def test_every_command_plans(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(command.split())
