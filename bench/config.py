"""The schema of a run's settings: which there are, and of which type. Their values are in conf/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MOST_SEEDS = 10_000  # a typing error, beyond


@dataclass
class Seeds:
    """How many data draws, and how many initialisations on each."""

    data: int = MISSING
    init: int = MISSING


@dataclass
class Tracking:
    """Weights & Biases: "online", "offline" or "disabled", and the project there."""

    mode: str = MISSING
    project: str = MISSING


@dataclass
class Settings:
    """One cell. ``task``, ``model``, ``trainer`` and each of ``compare`` name what to make in ``_target_``.

    ``study`` likewise names the function of a study (see ``bench.studies.study``), which then runs instead.
    """

    name: str = MISSING
    task: dict[str, Any] = MISSING
    model: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    compare: dict[str, Any] = MISSING
    study: dict[str, Any] | None = None
    tracking: Tracking = field(default_factory=Tracking)
    seeds: Seeds = field(default_factory=Seeds)
    runs: str = MISSING
    report: str | None = None
    force: bool = False


def check(config: DictConfig) -> None:
    """Raises: ValueError, one sentence that names the field, where a setting is unknown or of another type."""
    try:
        settings: Any = OmegaConf.merge(OmegaConf.structured(Settings), config)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{error.full_key or 'settings'}: {message}.") from error
    for axis in ("data", "init"):
        if not 1 <= settings.seeds[axis] <= MOST_SEEDS:
            raise ValueError(f"seeds.{axis} must be a whole number from 1 to {MOST_SEEDS}, not {settings.seeds[axis]}.")
    for name in ("runs", "report"):
        if settings[name] == "":
            raise ValueError(f"{name} must name a folder.")
