"""What a command would do: its cells composed and checked, what of them is done, and what the rest will cost."""

from bench.plan.cells import PlanError, Planned, build, build_study, plan
from bench.plan.commandline import check_settings, parse, shows
from bench.plan.own import CONF, search_own
from bench.plan.state import State, state

__all__ = [
    "CONF",
    "PlanError",
    "Planned",
    "State",
    "build",
    "build_study",
    "check_settings",
    "parse",
    "plan",
    "search_own",
    "shows",
    "state",
]
