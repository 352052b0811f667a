"""Experiments that name a study: refused in one sentence, run once, read afterwards, and drawn as a page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import store
from bench.plan import CONF, PlanError, plan
from bench.record import Record
from bench.report.panels import study_page
from bench.studies.panel import Curve, Panel, page

STUDIES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if "study:" in path.read_text())
SMALL = ["experiment=pure_modes", "study.networks=0", "study.trials=3", "study.size=4", "study.levels=[0,1]",
         "study.n=[2,4]", "tracking=disabled"]  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_takes_its_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for planned in plan([f"experiment={name}"]):
        assert planned.request is not None
        assert planned.name == f"studies/{planned.request.name}"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("study.domain=torus", "study.domain must be one of cube, sphere, circle"),
        ("study.trials=many", "study.trials must be a whole number"),
        ("study.trials=0", "trials"),
        ("study.n=5", "study.n must be a list"),
        ("+study.trails=3", "Did you mean 'trials'"),
        ("study._target_=bench.studies.nowhere", "is no study"),
        ("study._target_=bench.theory.bounds.parity_bound", "is no study"),
        ("task=digits", "does not go with a study"),
        ("model.width=3", "does not go with a study"),
    ],
)
def test_wrong_settings_of_a_study_are_one_sentence(
    override: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=says.replace("'", "['\"]")) as caught:
        plan(["experiment=pure_modes", override])
    assert "\n" not in str(caught.value)


def test_a_study_runs_once_and_leaves_a_page(tmp_path: Path) -> None:
    def bench(*arguments: str) -> str:
        command = [sys.executable, "-m", "bench", *SMALL, "study.domain=cube", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "cube 4, depth 2: done" in bench()
    (record,) = tmp_path.glob("runs/studies/*/record.json")
    before = record.stat().st_mtime_ns
    assert store.read_record(record.parent).arrays["kernel_mse"].shape == (2, 2, 2)
    assert "<svg" in (tmp_path / "report" / f"{record.parent.name}.html").read_text()
    bench()
    assert record.stat().st_mtime_ns == before
    bench("force=true")
    assert record.stat().st_mtime_ns != before


def test_a_page_shows_means_errors_and_counts() -> None:
    curves = (Curve("a", "theory", "theory"), Curve("a", "measured", "kernel", (1,)))
    card = page("Heading", "What one sees.", (Panel("Error", "n", "points", "MSE", curves, log_x=True, log_y=True),))
    arrays = {
        "n": np.array([1.0, 10.0]), "theory": np.array([[1.0, 0.5]]),
        "measured": np.array([[[9.0, 9.0], [1.0, 0.25]], [[9.0, 9.0], [2.0, 0.75]]]),
    }  # fmt: skip
    text = study_page(Record("name", "done", "", {**card, "width": 7}, arrays=arrays))
    assert "1.50 ± 0.50 (2)" in text  # mean 1.5, standard deviation .71, two seeds
    assert "0.50 ± 0.25 (2)" in text
    assert "width" in text
    assert "<svg" in text
