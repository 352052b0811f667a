"""The dashboard: its specification, without a server; and that everything it shows is logged by a run."""

import json
import sys
from pathlib import Path

import pytest
from test_run import bench
from test_tracking import read, rows_of, summary_of

from bench import dashboard

pytest.importorskip("wandb_workspaces", reason="pip install -c constraints.txt -e '.[wandb]'")


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # the package's own
def test_the_specification_lays_out_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "board.json"
    assert dashboard.main(["entity=me", "experiment=width", f"json={file}"]) == 0
    assert str(file) in capsys.readouterr().out
    spec = json.loads(file.read_text())
    sections = {one["name"]: one["panels"] for one in spec["section"]["panelBankConfig"]["sections"] if one["panels"]}
    assert [len(panels) for panels in sections.values()] == [6, 6, 8, 6]
    live, training, match, width = sections.values()
    loss = live[0]["config"]
    assert loss["metrics"] == ["live/data0-init0-order0/loss"]
    assert loss["xAxis"] == "live/data0-init0-order0/time"
    assert (loss["xLogScale"], loss["yLogScale"]) == (True, True)
    assert [panel["config"]["metrics"] for panel in training] == [[f"training/{key}"] for key in dashboard.TRAINING]
    assert {panel["viewType"] for panel in match} == {"Markdown Panel", "Bar Chart"}
    assert [panel["config"]["yAxis"] for panel in width] == [f"summary:{key}" for key in dashboard.BY_WIDTH]
    assert {panel["config"]["xAxis"] for panel in width} == {"summary:width"}
    group = json.dumps(spec["section"]["runSets"][0]["filters"])
    assert "width" in group
    assert "group" in group


def test_without_the_extra_or_an_account_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))

    def refused(*arguments: str) -> str:
        assert dashboard.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "wandb login" in refused("entity=me")
    assert "entity=NAME" in refused("json=x")
    assert "entity=NAME" in refused()  # before an account is asked for
    assert "Did you mean 'width'" in refused("entity=me", "experiment=widht")
    assert "cannot be written" in refused("entity=me", f"json={tmp_path}")
    assert "Unknown argument 'team=me'" in refused("team=me")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    assert "'.[wandb]'" in refused("entity=me")


@pytest.mark.slow
def test_all_that_is_shown_is_logged(tmp_path: Path) -> None:
    done = bench(["task=staircase", "task.d=8", "task.n_train=24", "task.n_test=40", "trainer.tolerance=1e-2",
                  "model.width=16", "tracking=offline", "report=null"], tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("runs/*/wandb/offline-run-*/run-*.wandb")
    records = list(read(file))
    shown = dashboard.metrics()
    assert shown["history"] <= {key for row in rows_of(records) for key in row}
    assert shown["summary"] <= summary_of(records).keys()
