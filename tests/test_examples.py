"""The example repository, for real: the commands of its workflow run in a copy of it, and can fail."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "examples" / "own_repository"
WORKFLOW = OWN / ".github" / "workflows" / "claims.yml"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OWN, tmp_path / "own", ignore=shutil.ignore_patterns("runs", "__pycache__")))


def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return found


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workflow()["jobs"]["claims"]["steps"]
    return found


def command(name: str) -> str:
    (found,) = [step["run"] for step in steps() if step.get("name") == name]
    assert isinstance(found, str)
    return found


def run(repository: Path, text: str) -> subprocess.CompletedProcess[str]:
    """As the runner does: bash, in the checkout; ``python`` is the one that runs the tests."""
    bin_folder = repository.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    python = bin_folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("UNLOCK_SEED", None)
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text], cwd=repository, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_workflow_is_one() -> None:
    """What GitHub asks of a workflow, as far as it can be read off the file."""
    content = workflow()
    triggers = content[True]  # YAML 1.1 reads "on" as true; GitHub does not
    assert {"pull_request", "schedule"} <= set(triggers)
    for entry in triggers["schedule"]:
        assert re.fullmatch(r"\d+ \d+ [\d*]+ [\d*]+ [\d*]+", entry["cron"])
    assert set(content) <= {"name", True, "permissions", "concurrency", "jobs", "env", "defaults"}
    (job,) = content["jobs"].values()
    assert job["runs-on"]
    assert set(job) <= {"runs-on", "timeout-minutes", "env", "steps", "strategy", "needs", "if"}
    assert all(isinstance(value, str) for value in job["env"].values())
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step), step
        assert set(step) <= {"name", "uses", "run", "with", "if", "env", "id"}, step
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
    text = WORKFLOW.read_text()
    assert text.count("${{") == text.count("}}")
    assert set(re.findall(r"\$\{\{ ?([a-z]+)", text)) <= {"github", "always"}
    cache = next(step["with"] for step in steps() if step.get("uses", "").startswith("actions/cache"))
    assert cache["path"] == "runs/studies"  # where bench.claims keeps them
    uploaded = next(step["with"]["path"] for step in steps() if "upload-artifact" in step.get("uses", "")).split()
    assert all(path in command("Claims") for path in uploaded)


def test_what_the_workflow_installs_is_there() -> None:
    words = shlex.split(command("Install"))
    files = [words[i + 1] for i, word in enumerate(words) if word in ("-c", "-e", "-r")]
    assert files == ["widebench/constraints.txt", "widebench", "requirements.txt"]
    assert (ROOT / "constraints.txt").is_file()
    assert (ROOT / "pyproject.toml").is_file()
    assert (OWN / "requirements.txt").is_file()


@pytest.mark.slow
def test_its_commands_pass_and_see_a_network_that_is_not_lazy(repository: Path) -> None:
    done = run(repository, command("Claims"))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((repository / "claims.json").read_text())
    assert {claim["name"]: claim["verdict"] for claim in content["claims"]} == {
        "rings-kernel-converges": "holds", "rings-network-is-lazy": "holds"
    }  # fmt: skip
    assert all(control["verdict"] == "refuted" for claim in content["claims"] for control in claim["control"])
    assert ElementTree.parse(repository / "claims.xml").getroot().get("failures") == "0"
    assert "<svg" in (repository / "page" / "claims.html").read_text()
    records = sorted((repository / "runs" / "studies").rglob("record.json"))
    times = [path.stat().st_mtime_ns for path in records]
    assert len(records) == 2
    assert run(repository, command("Claims")).returncode == 0
    assert [path.stat().st_mtime_ns for path in records] == times  # read

    fresh = run(repository, command("Claims on fresh seeds"))
    assert fresh.returncode == 0, fresh.stdout + fresh.stderr
    assert "Seeds from 0;" not in fresh.stdout

    # A pull request that makes the network learn features: it is no longer its initial kernel's regression.
    file = repository / "my_claims.py"
    source = file.read_text()
    assert 'richness="ntk"' in source
    file.write_text(source.replace('richness="ntk"', "richness=3.0"))
    done = run(repository, command("Claims").replace("rings-*", "rings-network-is-lazy"))
    assert done.returncode == 1, done.stdout + done.stderr
    (claim,) = json.loads((repository / "claims.json").read_text())["claims"]
    assert claim["verdict"] == "refuted"
