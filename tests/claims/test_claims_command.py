"""``python -m bench.claims`` with a user's own file: exit codes, JSON, JUnit, page, shared and cached studies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.claims import Claim
from bench.claims.__main__ import main
from bench.claims.registry import built_in
from bench.claims.run import Skipped, check
from bench.studies.study import fingerprint

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
    with Path({log!r}).open("a") as log:
        log.write("ran\\n")
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


@pytest.fixture
def run_here(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """As ``run(mine, "mine-true")``, in this process."""
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def once() -> int:
        sys.modules.pop(mine.stem, None)
        fingerprint.cache_clear()
        return main(["mine-true", "--claims", str(mine), "--runs", str(mine.parent / "runs"), "--jobs", "1"])

    return once


@pytest.mark.slow
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
        (["nope-*"], "Unknown claim 'nope-*'. --list names all"),
        (["--seeds", "1"], "--seeds must be"),
        (["--seeds", "0"], "--seeds must be"),
        (["--seeds", "-1"], "--seeds must be"),
        (["--seeds", "1000000000"], "to 1000, not 1000000000"),
        (["--seeds", "many"], "--seeds"),
        (["--redraw", "1"], "--redraw must be"),
        (["--redraw", "20", "--seeds", "1001"], "--seeds must be"),
        (["--redraw", "20", "--junit", "x.xml"], "--junit is not for --redraw"),
        (["--json", "."], "--json . cannot be written: it is a folder"),
        (["--json", f"{__file__}/x.json"], "cannot be written"),
        (["--junit", f"{__file__}/x.xml"], "--junit"),
        (["--report", f"{__file__}/page"], "--report"),
        (["--runs", f"{__file__}/runs"], "--runs"),
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


BROKEN = {
    "syntax": ("CLAIMS = [", "does not import"),
    "exits": ("import sys; sys.exit(0)", "does not import: SystemExit"),
    "empty": ("x = 1", "neither CLAIMS nor MEASUREMENTS"),
    "no_claim": ("CLAIMS = ['a claim']", "list Claim and Measurement objects"),
    "no_list": ("CLAIMS = 3", "must be lists"),
    "twice": (MINE.format(log="x") + "CLAIMS += CLAIMS[:1]", "already is a claim or measurement named mine-true"),
    "taken": (MINE.format(log="x").replace("mine-true", "path-kernel"), "already is a claim or measurement named"),
    "name": (MINE.format(log="x").replace("mine-true", "Mine true"), "lower case words"),
    "alpha": (MINE.format(log="x").replace('power="any"', 'power="any", alpha=2'), "alpha must be above 0"),
    "windows": (MINE.format(log="x").replace('{"height": Window(0, 1, gap=1)}', "3"), "must be a Window for each"),
    "requests": (
        MINE.format(log="x").replace("lambda size, seeds: [Request(heights, Settings(shift, seeds))]", "3"),
        "requests must be a function",
    ),
    "controls": (MINE.format(log="x").replace("controls=[Control", "controls=[3, Control"), "list of Control objects"),
    "control": (MINE.format(log="x").replace("controls=[Control", "controls=[][Control"), "does not import"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_of_claims_is_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    text, says = BROKEN[kind]
    path = tmp_path / f"claims_that_are_broken_{kind}.py"
    path.write_text(text)
    assert main(["--claims", str(path), "--list"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_one_claims_mistake_does_not_end_the_others(mine: Path, tmp_path: Path) -> None:
    """Requests that raise or are none, studies that exit or kill their process, statistics of a wrong shape, ..."""
    mine.write_text(
        mine.read_text().replace("no such height", "no such \\x00 height")
        + """
from dataclasses import replace
good = CLAIMS[0]
def raises(size, seeds):
    raise LookupError("no requests")
def exits(settings):
    raise SystemExit(0)
CLAIMS += [
    replace(good, name="bad-none", requests=lambda size, seeds: None),
    replace(good, name="bad-settings", requests=lambda size, seeds: [Request(heights, {1, 2})]),
    replace(good, name="bad-exit", requests=lambda size, seeds: [Request(exits, Settings(0.5, seeds))]),
    replace(good, name="bad-count", statistics=lambda records: {"height": [0.5] * 80}),
    replace(good, name="bad-requests", requests=raises),
    replace(good, name="bad-study", requests=lambda size, seeds: [Request(lambda settings: None, 1)]),
    replace(good, name="bad-shape", statistics=lambda records: {"height": [[1.0, 2.0]]}),
    replace(good, name="bad-values", statistics=lambda records: {"height": []}),
    replace(good, name="bad-control", controls=[Control("not wrong", good.statistics)]),
    replace(good, name="skipped-here", lacks=lambda: "No telescope."),
]
"""
    )
    files = [tmp_path / name for name in ("out.json", "out.xml")]
    done = run(mine, "mine-*", "bad-*", "skipped-*", "--json", str(files[0]), "--junit", str(files[1]),
               "--report", str(tmp_path / "page"))  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    content = json.loads(files[0].read_text())
    claims = {claim["name"]: claim for claim in content["claims"]}
    assert "no requests" in claims["bad-requests"]["reason"]
    assert "top of a module" in claims["bad-study"]["reason"]
    assert "shape [1, 2]" in claims["bad-shape"]["reason"]
    assert "shape [0]" in claims["bad-values"]["reason"]
    assert "NoneType" in claims["bad-none"]["reason"]
    assert "set" in claims["bad-settings"]["reason"]
    assert "SystemExit: 0" in claims["bad-exit"]["reason"]
    assert "80 values for 8 seeds" in claims["bad-count"]["reason"]
    assert claims["bad-control"]["verdict"] == "holds"
    assert not claims["bad-control"]["passed"]
    assert claims["mine-true"]["passed"]
    assert content["skipped"] == [{"name": "skipped-here", "reason": "No telescope."}]
    assert "No telescope." in done.stdout
    assert "No telescope." in (tmp_path / "page" / "claims.html").read_text()
    suite = ElementTree.parse(files[1]).getroot()
    counts = {key: int(suite.get(key, "")) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {
        "tests": len(suite.findall("testcase")), "failures": len(suite.findall("testcase/failure")),
        "errors": 0, "skipped": len(suite.findall("testcase/skipped")),
    }  # fmt: skip
    assert (counts["tests"], counts["failures"], counts["skipped"]) == (15, 11, 1)
    said = [failure.get("message") for failure in suite.findall("testcase[@name='bad-control']/failure")]
    assert said == ["control not rejected: not wrong"]
    assert run(mine, "skipped-here").returncode == 0


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_study(mine: Path, tmp_path: Path) -> None:
    """As the kernel does where memory is short. What was done before is kept, and the next run goes on from there."""
    mine.write_text(
        mine.read_text()
        + """
import os, signal, time
def killed(settings):
    other = Path("{log}")
    while not (other.exists() and other.read_text().count("ran") == 1):
        time.sleep(0.05)
    time.sleep(1)  # the other study is written
    os.kill(os.getpid(), signal.SIGKILL)
CLAIMS.append(claim("mine-killed", 0.5))
object.__setattr__(CLAIMS[-1], "requests", lambda size, seeds: [Request(killed, Settings(0.5, seeds))])
""".replace("{log}", str(tmp_path / "log"))
    )
    out = tmp_path / "out.json"
    done = run(mine, "mine-true", "mine-killed", "--jobs", "2", "--json", str(out))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    claims = {claim["name"]: claim for claim in json.loads(out.read_text())["claims"]}
    assert "process died" in claims["mine-killed"]["reason"]
    assert claims["mine-true"]["passed"]
    assert run(mine, "mine-true").returncode == 0
    assert (tmp_path / "log").read_text().count("ran") == 1


def test_configuration_counts_as_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies take their tasks and models from it. An editor's lock beside a user's claims, a dead link, does not."""
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr("bench.studies.study.ROOT", tmp_path)
    found = []
    for text in ("n_train: 128", "n_train: 64", "n_train: 128"):
        (tmp_path / "conf" / "task.yaml").write_text(text)
        fingerprint.cache_clear()
        found.append(fingerprint(tmp_path))
        (tmp_path / ".#mine.py").unlink(missing_ok=True)
        (tmp_path / ".#mine.py").symlink_to("somebody@somewhere.123")
    fingerprint.cache_clear()
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("damage", ["record.json", "arrays.npz", "no arrays", "no card"])
def test_a_damaged_cache_is_made_again(damage: str, mine: Path, tmp_path: Path, run_here: Callable[[], int]) -> None:
    assert run_here() == 0
    (record,) = (tmp_path / "runs").rglob("record.json")
    arrays = record.with_name("arrays.npz")
    if damage == "no arrays":
        arrays.unlink()
    elif damage == "no card":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"card": None}))
    else:
        path = record.with_name(damage)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run_here() == 0
    assert (tmp_path / "log").read_text().count("ran") == 2


def test_an_edit_of_the_users_own_code_runs_its_studies_again(tmp_path: Path, run_here: Callable[[], int]) -> None:
    assert run_here() == 0
    (tmp_path / "model.py").write_text("width = 64")  # anything beside the claims may be what they are about
    assert run_here() == 0
    assert (tmp_path / "log").read_text().count("ran") == 2
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "other.py").write_text("width = 64")
    assert run_here() == 0
    assert (tmp_path / "log").read_text().count("ran") == 2


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(mine: Path, tmp_path: Path) -> None:
    """Killed in its second study: the first is read, the second run again; the JSON of before is left as it was."""
    mine.write_text(
        mine.read_text().replace("    if settings.shift > 90:", "    import time\n    if settings.shift > 90:")
        .replace("def claim(", "def slow(settings):\n    import time\n    Path({log!r}).open('a').write('slow\\n')\n"
                 "    time.sleep(0 if Path({log!r}).read_text().count('slow') > 1 else 600)\n"
                 "    return heights(settings)\n\ndef claim(".replace("{log!r}", repr(str(tmp_path / "log"))))
        + "\nfrom dataclasses import replace\nCLAIMS = [CLAIMS[0], replace(CLAIMS[0], name='mine-slow', "
        "requests=lambda size, seeds: [Request(slow, Settings(.5, seeds))])]\n"
    )  # fmt: skip
    out = tmp_path / "out.json"
    out.write_text("of before")
    command = [sys.executable, "-m", "bench.claims", "--claims", str(mine), "--runs", str(tmp_path / "runs"), "mine-*",
               "--json", str(out), "--jobs", "1"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not ((tmp_path / "log").exists() and "slow" in (tmp_path / "log").read_text()):
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
    assert out.read_text() == "of before"
    done = run(mine, "mine-*", "--jobs", "1", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "log").read_text().split() == ["ran", "slow", "slow", "ran"]
    assert len(json.loads(out.read_text())["claims"]) == 2


def test_claims_about_images_are_skipped_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("tasks.sources.DEBIAN_FASHION_MNIST", tmp_path / "none")
    about_images = [item for item in built_in().values() if item.lacks()]
    named = {item.name for item in about_images}
    assert {"eigenlearning-gcv", "convolution-helps-on-images", "what-mixed-pixels-leave"} <= named
    for outcome in check(about_images, tmp_path / "studies"):
        assert isinstance(outcome, Skipped)
        assert "WIDEBENCH_DATA" in outcome.reason
    assert not list(tmp_path.glob("studies/*"))
