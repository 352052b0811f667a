"""``python -m bench.dashboard``: the dashboard of an experiment at Weights & Biases, laid out by code."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import store
from bench.arguments import settings
from bench.plan import CONF
from bench.tracking import TIME, logged_in
from bench.trained import Member

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

_DEFAULTS = {"entity": "", "project": "widebench", "experiment": "after_kernel", "json": ""}
_USE = "use python -m bench.dashboard entity=NAME [project=NAME] [experiment=NAME] [json=FILE]"

WATCHED = Member(0, 0).name
"""The network whose live curves are shown: every cell has it."""
LIVE = {
    "loss": "Relative train loss", "test_error": "Relative test error", "kernel_motion": "Kernel motion",
    "kernel_alignment_held_out": "Alignment with held-out labels", "match": "R2 of K_t's regression on f_t, to f_t",
    "linearised_match": "R2 of the linearised network to f_t",
}  # fmt: skip
TRAINING = {
    "loss": "Relative train loss", "network_test_error": "Relative test error of the network",
    "kernel_motion": "Kernel motion", "kernel_alignment_held_out": "Alignment with held-out labels",
    "after_r2": "R2 of K_t's regression on y, to f_T", "linearised_distance": "Distance of the linearised network",
}  # fmt: skip
PREDICTORS = ("after", "initial", "linearised", "infinite_ntk", "features", "agop_laplace", "labels")
BY_WIDTH = {
    "after/skill": "Skill of the after-kernel", "after/r2": "R2 of the after-kernel",
    "initial/skill": "Skill of the initial kernel", "kernel/motion": "Kernel motion",
    "alignment/after/over_chance": "Alignment after training, over chance",
    "network/test_error": "Relative test error of the network",
}  # fmt: skip
LOG_Y = ("loss", "test_error", "network_test_error", "kernel_motion", "kernel/motion", "network/test_error")


def main(arguments: Sequence[str]) -> int:
    """Returns 0, or 2 where nothing can be done (one sentence)."""
    try:
        chosen = settings(arguments, _DEFAULTS, _USE)
        if importlib.util.find_spec("wandb_workspaces") is None:
            raise ValueError("Dashboards need one more package: pip install -c constraints.txt -e '.[wandb]'.")
        if not chosen["entity"]:
            raise ValueError(f"The user or team that the project belongs to must be named by entity=NAME: {_USE}.")
        _check_experiment(chosen["experiment"])
        if chosen["json"]:
            store.check_writable("json", Path(chosen["json"]))
        elif not logged_in():
            raise ValueError(
                "Saving a dashboard needs a W&B account: run `wandb login` or set WANDB_API_KEY, or use json=FILE to "
                "write its specification to a file."
            )
        made = workspace(chosen["entity"], chosen["project"], chosen["experiment"])
        if chosen["json"]:
            store.write_json(Path(chosen["json"]), specification(made))
            print(f"Specification: {chosen['json']}")
            return 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        made.save()
    except Exception as problem:  # the server's word, or the network's
        print(f"W&B did not take the dashboard ({' '.join(str(problem).split())[:300]}).", file=sys.stderr)
        return 2
    print(f"Dashboard: {made.url}")
    return 0


def _check_experiment(name: str) -> None:
    """Raises: ValueError where neither the package nor ``./conf`` has such an experiment, by which runs are grouped."""
    known = sorted({file.stem for conf in (CONF, Path("conf")) for file in (conf / "experiment").glob("*.yaml")})
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"Unknown experiment '{name}'.{hint} Available: {', '.join(known)}.")


def workspace(entity: str, project: str, experiment: str) -> Workspace:
    """Four sections: while it trains, the means of all networks, every predictor, and what changes with the width.

    Needs no server and no account; ``save()`` does.
    """
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.expr import And

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{experiment}: does the after-kernel explain the network?",
        sections=_sections(),
        settings=ws.WorkspaceSettings(max_runs=30),
        runset_settings=ws.RunsetSettings(
            filters=And(ws.Metric("Group") == experiment),
            pinned_columns=["run:displayName", "summary:after/skill", "summary:initial/skill", "summary:kernel/motion"],
        ),
        auto_generate_panels=False,
    )


def specification(made: Workspace) -> Any:
    """What W&B is sent, as plain data."""
    return made._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def metrics() -> dict[str, set[str]]:
    """What the panels show: keys of the "history" and of the "summary"."""
    live = {f"live/{WATCHED}/{key}" for key in (*LIVE, "time")}
    training = {TIME, *(f"training/{key}" for key in TRAINING)}
    return {"history": live | training, "summary": {"width", *BY_WIDTH, *(f"{name}/skill" for name in PREDICTORS)}}


def _sections() -> list[Section]:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import workspaces as ws

    live: list[Any] = [
        wr.LinePlot(title=title, x=f"live/{WATCHED}/time", y=[f"live/{WATCHED}/{key}"], log_x=True,
                    log_y=key in LOG_Y, title_x="training time")
        for key, title in LIVE.items()
    ]  # fmt: skip
    training: list[Any] = [
        wr.LinePlot(title=title, x=TIME, y=[f"training/{key}"], log_x=True, log_y=key in LOG_Y,
                    title_x="training time")
        for key, title in TRAINING.items()
    ]  # fmt: skip
    match: list[Any] = [
        wr.MarkdownPanel(
            markdown="**skill**: 0 is knowing the clean labels, 1 is the trained network. A match needs a skill above "
            "0 and above that of every rival (`agop_laplace`, `labels`)."
        )
    ]
    match += [wr.BarPlot(title=f"Skill: {name}", metrics=[f"{name}/skill"], orientation="h") for name in PREDICTORS]
    by_width: list[Any] = [
        wr.ScatterPlot(title=title, x=wr.SummaryMetric("width"), y=wr.SummaryMetric(name), log_x=True,
                       log_y=name in LOG_Y)
        for name, title in BY_WIDTH.items()
    ]  # fmt: skip
    return [
        ws.Section(name=f"While it trains ({WATCHED})", panels=live, is_open=True),
        ws.Section(name="Along training, mean over networks", panels=training, is_open=True),
        ws.Section(name="Match to the trained network", panels=match, is_open=True),
        ws.Section(name="Against the width", panels=by_width, is_open=True),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
