"""What a command would do: its cells composed and checked, what of them is done, and what the rest will cost."""

from bench.plan.cells import CONF, PlanError, Planned, build, plan
from bench.plan.state import State, state

__all__ = ["CONF", "PlanError", "Planned", "State", "build", "plan", "state"]
