"""Experiments that name a study: refused in one sentence, run once, read afterwards, and drawn as a page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import progress, run, store
from bench.plan import CONF, PlanError, plan
from bench.record import Record, summarise
from bench.report.panels import REFERENCE, _colours, study_page
from bench.studies.convolution import Convolution, convolution
from bench.studies.mimics import MimicCurves, mimic_curves
from bench.studies.panel import Curve, Panel, gap, named_panel, page, places, relative_gap
from bench.tracking import Rows

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
        ("study.n=[]", "n must be a list of at least one"),
        ("study.seeds=[]", "seeds must be a list of at least one"),
        ("study.seeds=[0,1,0]", "seeds must differ from each other"),
        ("study.tolerance=nan", "tolerance must be a number, not nan"),
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


@pytest.mark.slow
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


def test_a_finished_study_is_tracked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep runs all its cells again where one is missing; and nobody else may write the W&B run meanwhile."""
    monkeypatch.chdir(tmp_path)
    (cell,) = plan([*SMALL, "study.domain=cube", "tracking=offline"])
    finished: list[tuple[bool, bool]] = []

    class Tracker:
        def finish(self, record: Record) -> None:
            finished.append((store.held(cell.folder), (cell.folder / progress.FILE).exists()))
            Rows(cell.folder).close(ended=True)

    monkeypatch.setattr(run, "_tracker", lambda *_: Tracker())
    for _ in range(2):
        run.job(cell.config)
        assert store.read_record(cell.folder).status == "done"
    assert finished == [(True, True)]  # and whoever finds its process dead knows that it was begun


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


def test_a_page_of_named_things_has_their_names_and_the_scores() -> None:
    names = ("first", "second & last")
    card = page("H", "T", (named_panel("Error", names, "MSE", (Curve("a", "a", "kernel"),), what="task"),))
    arrays = {"a": np.array([[1.0, 3.0], [2.0, 5.0]]), **places(names)}
    text = study_page(Record("r", "done", "", card, (summarise("a/mean", [2.0, 3.5], [0, 1]),), arrays=arrays))
    assert '<td class="text">second &amp; last</td><td>4.0 ± 1.0 (2)</td>' in text  # 4, sd 2^.5, two seeds
    assert '<td class="text">a/mean</td><td>2.75 ± 0.75 (2)</td>' in text
    assert text.count("second &amp; last") == 2  # below the picture and in the table


def test_a_label_has_one_colour_on_a_page_and_references_are_grey() -> None:
    curves = {label: Curve(label, "a", "kernel") for label in "abc"} | {"r": Curve("r", "a", "reference")}
    panels = [Panel("", "x", "", "", tuple(curves[label] for label in some)) for some in ("ab", "rbc", "ca")]
    colours = _colours(store.plain(panels))
    assert list(colours) == ["a", "b", "c"]
    assert len({*colours.values(), REFERENCE}) == 4


def test_distances_are_means_over_the_points_that_a_seed_has() -> None:
    measured = np.array([[1.0, 3.0, np.nan], [2.0, 2.0, 8.0]])
    expected = np.array([[1.0, 2.0, 4.0]])
    assert gap("a", measured, expected).per_member == (0.5, 5 / 3)
    assert relative_gap("a", measured, expected).per_member == (0.25, 2 / 3)
    assert np.isnan(gap("a", np.full((1, 3), np.nan), expected).value)


def test_images_leave_a_page_a_pair(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEBENCH_DATA", str(data_folder))
    settings = Convolution("cifar10_grey", (("plane", "ship"), ("cat", "dog")), n_train=12, n_test=10, filters=16,
                           width=4, seeds=(0,))  # fmt: skip
    record = convolution(settings)
    errors = record.arrays["class_error_connected"] - record.arrays["class_error_convolution_scrambled"]
    found = record.score("error saved by convolution_scrambled")
    assert found is not None
    assert found.value == pytest.approx(errors.mean())
    text = study_page(record)
    for words in ("plane/ship", "cat/dog", "pixels scrambled, network", "<svg"):
        assert words in text


@pytest.mark.slow
def test_loss_curves_leave_a_page() -> None:
    record = mimic_curves(MimicCurves("wine", n_train=20, n_test=10, width=8, steps=60, seeds=(0, 1)))
    arrays = record.arrays
    assert arrays["train_mimic"].shape == (2, len(arrays["step"]))
    assert arrays["step"][[0, -1]].tolist() == [0, 60]
    assert (np.diff(arrays["step"]) > 0).all()
    found = record.score("mimic/test gap over that of ReLU")
    assert found is not None
    ratio = arrays["gap_mimic_test"].mean() / arrays["gap_relu_test"].mean()
    # The jackknife takes bias away: of two seeds, twice the ratio of the means less the mean of the ratios.
    assert found.value == pytest.approx(2 * ratio - (arrays["gap_mimic_test"] / arrays["gap_relu_test"]).mean())
    assert "<svg" in study_page(record)
