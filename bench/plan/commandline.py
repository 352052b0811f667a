"""What a command line asks for: overrides and -m apart, the experiment that is meant where none is named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.arguments import HELP
from bench.plan.cells import PlanError

DEFAULT = "experiment=after_kernel"
MULTIRUN = ("-m", "--multirun")
_SHOWN = (*HELP, "--hydra-help", "--cfg", "-c", "--info", "-i", "--version")
"""Hydra's flags that show something and run nothing."""
_WITH_CFG = ("--resolve", "--package", "-p")
_ASIDE = ("tracking", "runs", "report", "force", "seeds", "hydra")
"""Settings that say where, how often or by whom it is done, and not what."""


def shows(arguments: Sequence[str]) -> bool:
    """Whether Hydra is only asked to show something.

    Raises:
        PlanError: a flag that goes round the plan, or that there is not.
    """
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    shown = any(flag in _SHOWN for flag in flags)
    for flag in flags:
        if flag not in (*MULTIRUN, *_SHOWN) and not (shown and flag in _WITH_CFG):
            raise PlanError(f"Unknown flag {flag}: beside settings (key=value) there are -m, --help, --cfg and --info.")
    return shown


def parse(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, with the default experiment where they do not say what is to be done, and the -m flags.

    Raises:
        PlanError: a flag other than -m, or an argument that is no setting.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if argument not in flags]
    for flag in flags:
        if flag not in MULTIRUN:
            raise PlanError(f"Unknown flag {flag}: beside settings (key=value) there are -m and --help.")
    check_settings(overrides)
    if all(_root(override) in _ASIDE for override in overrides):
        overrides = [DEFAULT, *overrides]
    return overrides, flags


def check_settings(overrides: Sequence[str]) -> None:
    """Raises: PlanError where an argument is no setting, or would change nothing."""
    for override in overrides:
        if not override.partition("=")[0] or ("=" not in override and not override.startswith("~")):
            raise PlanError(f"'{override}' is no setting: write key=value, as in task=digits or model.width=256.")
        if override.lstrip("+~").partition("=")[0] == "task.seed":
            raise PlanError("task.seed is not set here: the data draws of a cell are numbers 0 to seeds.data - 1.")


def _root(override: str) -> str:
    return re.split(r"[./@=]", override.lstrip("+~"), maxsplit=1)[0]
