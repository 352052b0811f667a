"""The schema of a run's settings: which there are, and of which type. Their values are in conf/."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
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
    _check_groups(config)
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


def _check_groups(config: DictConfig) -> None:
    """Raises: ValueError where a group of settings is one value instead."""
    for name, instead in (
        ("seeds", f"set seeds.data and seeds.init, whole numbers from 1 to {MOST_SEEDS}"),
        ("study", "name a shipped one by experiment=" + "|".join(_studies())),
    ):
        value = config.get(name)
        if not (value is None and name == "study") and not OmegaConf.is_dict(value):
            raise ValueError(f"{name} is a group of settings and cannot be {value!r}: {instead}.")


def _studies() -> list[str]:
    """The experiments of the package that are studies."""
    files = sorted((Path(__file__).resolve().parents[1] / "conf" / "experiment").glob("*.yaml"))
    return [file.stem for file in files if "\nstudy:" in file.read_text()]
