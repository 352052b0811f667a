"""``python -m bench.claims`` with a user's own file: exit codes, JSON, JUnit, page, shared and cached studies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.claims import Claim
from bench.claims.__main__ import main
from bench.claims.registry import built_in

MINE = """
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from bench.claims import Claim, Control, Measurement, Window
from bench.studies.study import Request, result

@dataclass(frozen=True)
class Settings:
    shift: float
    seeds: tuple[int, ...]

def heights(settings):
    Path({log!r}).open("a").write("ran\\n")
    if settings.shift > 90:
        raise RuntimeError("no such height")
    return result(arrays={{"height": settings.shift + np.array(settings.seeds) * 0.01}})

def claim(name, shift, **more):
    return Claim(
        name=name, statement="Heights lie between 0 and 1.", source="here", kind="theorem",
        requests=lambda size, seeds: [Request(heights, Settings(shift, seeds))],
        statistics=lambda records: {{"height": records[0].arrays["height"]}},
        windows={{"height": Window(0, 1, gap=1)}},
        controls=[Control("ten too high", lambda records: {{"height": records[0].arrays["height"] + 10}})],
        power="any", **more)

CLAIMS = [claim("mine-true", 0.5), claim("mine-too", 0.5), claim("mine-false", 5.0), claim("mine-broken", 99.0)]
MEASUREMENTS = [Measurement("mine-mean", "The mean.", "here", CLAIMS[0].requests, CLAIMS[0].statistics)]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my_claims.py"
    path.write_text(MINE.format(log=str(tmp_path / "log")))
    return path


def run(mine: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.claims", "--claims", str(mine), "--runs", str(mine.parent / "runs"), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_users_claims(mine: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("out.json", "out.xml")]
    done = run(mine, "mine-*", "--json", str(files[0]), "--junit", str(files[1]), "--report", str(tmp_path / "page"))
    assert done.returncode == 1, done.stderr
    content = json.loads(files[0].read_text())
    verdicts = {claim["name"]: claim["verdict"] for claim in content["claims"]}
    assert verdicts == {
        "mine-true": "holds", "mine-too": "holds", "mine-false": "refuted", "mine-broken": "inconclusive"
    }  # fmt: skip
    by_name = {claim["name"]: claim for claim in content["claims"]}
    assert "no such height" in by_name["mine-broken"]["reason"]
    assert by_name["mine-true"]["statistic"]["height"]["value"] == pytest.approx(0.5 + 0.01 * 3.5)  # seeds 0 to 7
    assert by_name["mine-true"]["control"][0]["verdict"] == "refuted"
    assert {"name", "verdict", "recorded", "statistic", "control", "seconds"} <= set(by_name["mine-true"])
    assert content["measurements"][0]["statistic"]["height"]["value"] == pytest.approx(0.535)
    suite = ElementTree.parse(files[1]).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("5", "2")
    page = (tmp_path / "page" / "claims.html").read_text()
    assert page.count("<svg") == 3  # the broken claim has no evidence
    assert (tmp_path / "log").read_text().count("ran") == 3  # two claims and the measurement shared one study
    assert run(mine, "mine-true").returncode == 0
    assert (tmp_path / "log").read_text().count("ran") == 3  # read from disk


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-claim"], "Unknown claim 'no-such-claim'"),
        (["--seeds", "1"], "--seeds must be"),
        (["--seeds", "many"], "--seeds"),
        (["--size", "tpu"], "cpu"),
        (["--jobs", "0"], "--jobs must be"),
        (["--claims", "absent.py"], "is no Python file"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code == 2
    assert says in said
    assert said.count("\n") == 1


def test_a_file_that_does_not_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken_claims_file.py"
    path.write_text("import nothing_of_that_name")
    assert main(["--claims", str(path)]) == 2
    assert "nothing_of_that_name" in capsys.readouterr().err


def test_every_claim_is_complete() -> None:
    for item in built_in().values():
        assert item.statement.endswith("."), item.name
        assert item.source, item.name
        if isinstance(item, Claim):
            assert item.controls, item.name
            assert item.power, item.name
