"""Every cell of a sweep, composed, built and checked before the first one trains."""

from __future__ import annotations

import copy
import difflib
import inspect
import pydoc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from torch import nn

from bench import store, tracking
from bench.compare import Comparison
from bench.config import check
from bench.losses import loss_of
from bench.networks import width_of
from bench.plan.own import CONF, search_own
from bench.predict import JITTER
from bench.studies.cell import Cell
from bench.studies.named import shapes_of
from bench.studies.study import FOLDER, Request, make_settings
from bench.train import Trainer
from bench.trained import seed_of
from tasks.task import Task

_EXTRAS = {"ray": "ray", "submitit_slurm": "slurm"}
"""Launchers that packages bring which are not always installed."""


class PlanError(Exception):
    """The user's settings are wrong: one sentence that names the field and what it may be."""


@dataclass(frozen=True)
class Planned:
    """One cell, checked: its overrides, its composed settings, and what is known of it without its data and network.

    A sweep may have hundreds: their tasks and models are built once to be checked, and not kept.
    Where ``config.study`` names one, ``request`` is that study, and the cell has no task and no model.
    """

    overrides: tuple[str, ...]
    config: DictConfig
    name: str
    settings: Mapping[str, Any]
    card: Mapping[str, Any]
    work: float
    request: Request | None = None

    @property
    def folder(self) -> Path:
        return Path(self.config.runs) / self.name


def plan(arguments: Sequence[str], multirun: bool = False) -> list[Planned]:
    """Compose and check every cell that ``python -m bench`` with these overrides would run.

    Raises:
        PlanError: a cell that cannot run; nothing has been trained.
    """
    search_own()
    try:
        _check_groups(arguments)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed: dict[tuple[str, ...], DictConfig] = {}
            cells = [_planned(overrides, composed) for overrides in _expand(arguments, multirun)]
    except (HydraException, OmegaConfBaseException) as error:
        raise PlanError(_sentence(error)) from error
    _check_launcher(arguments)
    for field in ("runs", "report"):
        if cells[0].config[field] is not None:
            _check_folder(field, Path(cells[0].config[field]))
    try:
        tracking.check(str(cells[0].config.tracking.mode))
    except ValueError as error:
        raise PlanError(str(error)) from error
    return cells


def build(config: DictConfig) -> Cell:
    """The cell that these settings describe.

    Raises:
        PlanError: settings out of range, or parts that do not fit together.
    """
    try:
        check(config)
    except ValueError as error:
        raise PlanError(str(error)) from error
    tasks = [_make("task", config.task, Task, seed=seed_of("data", i)) for i in range(config.seeds.data)]
    trainer = _make("trainer", config.trainer, Trainer)
    model = _model(config.model, tasks[0])
    comparisons = [
        _make(f"compare.{name}", settings, Comparison, _convert_="all") for name, settings in config.compare.items()
    ]
    try:
        trainer.check(model)
        for task in tasks:
            loss_of(trainer.loss).check(task.y_train)
    except ValueError as error:
        raise PlanError(str(error)) from error
    decided: dict[str, Any] = {
        name: OmegaConf.to_container(config[name], resolve=True) for name in ("task", "model", "trainer")
    }
    if decided["trainer"].get("method") == "auto":  # as in the records from before it was a setting
        del decided["trainer"]["method"]
    kind = str(config.model._target_).rpartition(".")[2]
    width = _width(model)
    settings = {
        **decided,
        "compare": OmegaConf.to_container(config.compare, resolve=True),
        "seeds": OmegaConf.to_container(config.seeds, resolve=True),
    }
    name = f"{tasks[0].name}-{kind}-w{width}-{store.settings_hash(decided)}".replace("/", "_").replace(" ", "_")
    return Cell(name, settings, tasks, model, trainer, config.seeds.init, comparisons,
                _card(config, tasks[0], kind, model, trainer, width))  # fmt: skip


def build_study(config: DictConfig) -> Request:
    """The study that ``config.study`` names: a function in ``_target_``, and its settings beside it.

    Raises:
        PlanError: no such study, or settings that it does not take.
    """
    values = dict(OmegaConf.to_container(config.study, resolve=True))  # type: ignore[arg-type]
    target = str(values.pop("_target_", None))
    try:
        function: Any = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise PlanError(f"study._target_: {_sentence(error)}") from error
    if not inspect.isfunction(function):
        raise PlanError(f"study._target_={target} is no study: name a function of bench.studies or of your own.")
    try:
        return Request(function, make_settings(function, values))
    except ValueError as error:
        raise PlanError(f"study.{error}") from error


def _expand(arguments: Sequence[str], multirun: bool) -> list[tuple[str, ...]]:
    """The overrides of every cell; the command line replaces an experiment's swept axes."""
    plain = [a for a in OverridesParser.create().parse_overrides(list(arguments)) if not a.is_sweep_override()]
    base = hydra.compose("config", [a.input_line or "" for a in plain], return_hydra_config=True)
    swept: dict[str, str] = {}
    if multirun or base.hydra.mode == RunMode.MULTIRUN:
        swept = {str(key): f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()}
    elif sweeps := [a for a in arguments if a not in [p.input_line for p in plain]]:
        raise PlanError(f"{sweeps[0]} lists several values: add -m to run them all.")
    for argument in OverridesParser.create().parse_overrides(list(arguments)):
        swept[argument.key_or_group] = argument.input_line or ""
    cells: list[tuple[str, ...]] = [()]
    for override in OverridesParser.create().parse_overrides(list(swept.values())):
        choices = [override.input_line or ""]
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise PlanError(f"{override.input_line} is no list of values: write {override.key_or_group}=a,b,c.")
            choices = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        cells = [(*cell, choice) for cell in cells for choice in choices]
    return cells


def _compose(overrides: tuple[str, ...], composed: dict[tuple[str, ...], DictConfig]) -> DictConfig:
    """As ``hydra.compose``, which takes a tenth of a second: cells of the same files are composed once (and found in
    ``composed``), and their values put into copies, as Hydra does it in the end. Where order counts it is left to it.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [o for o in parsed if "." in o.key_or_group and not o.key_or_group.startswith("hydra.")]
    files = tuple(o.input_line or "" for o in parsed if o not in values)
    ordered = any(o.type is not OverrideType.CHANGE or o.package for o in values)
    if ordered or any(isinstance(o.value(), dict) for o in parsed):
        return hydra.compose("config", list(overrides))
    if files not in composed:
        composed[files] = hydra.compose("config", list(files))
    config = copy.deepcopy(composed[files])
    for override in values:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return config


def _planned(overrides: tuple[str, ...], composed: dict[tuple[str, ...], DictConfig]) -> Planned:
    config = _compose(overrides, composed)
    try:
        if config.study is not None:
            return _planned_study(overrides, config)
        cell = build(config)
    except PlanError as error:
        raise PlanError(f"{error} (cell: {' '.join(overrides)})" if overrides else str(error)) from error
    return Planned(overrides, config, cell.name, cell.settings, cell.card, cell.work)


def _planned_study(overrides: tuple[str, ...], config: DictConfig) -> Planned:
    try:
        check(config)
    except ValueError as error:
        raise PlanError(str(error)) from error
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group.partition(".")[0] in ("task", "model", "trainer", "compare", "seeds"):
            raise PlanError(
                f"{override.input_line} does not go with a study, whose settings are study.<name>: "
                f"{', '.join(str(key) for key in config.study if key != '_target_')}."
            )
    request = build_study(config)
    settings = {"study": OmegaConf.to_container(config.study, resolve=True)}
    return Planned(overrides, config, f"{FOLDER}/{request.name}", settings, {}, 1.0, request)


def _make(field: str, settings: Any, kind: type, **more: Any) -> Any:
    """Call the ``_target_`` of some settings; the callee's own sentence is the user's."""
    if not isinstance(settings, DictConfig) or "_target_" not in settings:
        raise PlanError(f"{field} must name what to make in _target_, as the files in conf/{field} do.")
    try:
        made = hydra.utils.instantiate(settings, **more)
    except (InstantiationException, OSError, ValueError, TypeError) as error:
        sentence = _sentence(error)
        if "allocate memory" in sentence:
            sentence = "it needs more memory than this machine has."
        raise PlanError(f"{field}: {sentence}") from error
    if not isinstance(made, kind):
        raise PlanError(f"{field}: {settings._target_} makes a {type(made).__name__}, not a {kind.__name__}.")
    return made


def _model(settings: DictConfig, task: Task) -> nn.Module:
    """The model for this task: the shapes that its maker asks for by name are the task's."""
    shape, known = task.x_shape, shapes_of(task)
    try:
        maker: Any = pydoc.locate(str(settings._target_))
    except pydoc.ErrorDuringImport as error:
        raise PlanError(f"model._target_: {_sentence(error)}") from error
    if not callable(maker):
        raise PlanError(
            f"model._target_={settings._target_} is nothing that makes a model: name a function or a class."
        )
    parameters = inspect.signature(maker).parameters
    if "in_channels" in parameters and len(shape) != 3:
        raise PlanError(
            f"model: {settings._target_} needs images, and {task.name} gives inputs of shape {list(shape)}."
        )
    wanted = {name: value for name, value in known.items() if name in parameters and name not in settings}
    model = _make("model", settings, nn.Module, **wanted)
    with torch.no_grad():
        try:
            output = model(task.x_train[:1].float())
        except RuntimeError as error:
            raise PlanError(f"model: does not take inputs of shape {list(shape)}: {_sentence(error)}") from error
    if output.shape != (1, task.outputs):
        raise PlanError(
            f"model: gives outputs of shape {list(output.shape)}, and {task.name} needs [1, {task.outputs}]."
        )
    return model


def _width(model: nn.Module) -> int:
    try:
        return width_of(model)
    except ValueError:  # a linear model has no hidden layer
        return 0


def _card(
    config: DictConfig, task: Task, kind: str, model: nn.Module, trainer: Trainer, width: int
) -> Mapping[str, Any]:
    chosen = {key: config.model.get(key) for key in ("activation", "depth", "readout", "parameterization")}
    after = config.compare.get("after") or {}
    return {
        "task": task.name, "n_train": task.n_train, "n_test": task.n_test, "x_shape": list(task.x_shape),
        "outputs": task.outputs, "label_noise": task.noise, "model": kind, **chosen, "width": width,
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "richness": trainer.richness,
        "gamma": trainer.gamma(model), "base": after.get("base"), "targets": list(after.get("targets", [])),
        "ridge": after.get("ridge"), "jitter": JITTER, "tolerance": trainer.tolerance, "step": trainer.step,
        "optimiser": "full-batch gradient descent" + (", accelerated" if trainer.accelerated else ""),
        "seeds": {"data": config.seeds.data, "init": config.seeds.init},
    }  # fmt: skip


def _check_groups(arguments: Sequence[str]) -> None:
    """Hydra has no sentence for a number or null where a file is to be named."""
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        if override.is_sweep_override() or override.is_delete():
            continue
        group, value = override.key_or_group, override.value()
        if (CONF / group).is_dir() and (value is None or isinstance(value, bool | int | float | dict)):
            names = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
            raise PlanError(f"Unknown {group} '{'null' if value is None else value}'. Available: {names}.")


def _check_launcher(arguments: Sequence[str]) -> None:
    if "hydra/launcher=slurm" in arguments and shutil.which("sbatch") is None:
        raise PlanError("hydra/launcher=slurm needs Slurm's sbatch, and there is none here: start it where jobs are.")


def _check_folder(field: str, folder: Path) -> None:
    try:
        store.write_text(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise PlanError(f"{field}={folder} cannot be written ({error.strerror}): name another folder.") from error


def _sentence(error: BaseException) -> str:
    """The cause beneath Hydra's wrapping, as one line."""
    while isinstance(error, HydraException) and not isinstance(error, MissingConfigException) and error.__cause__:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and name in _EXTRAS:
            extra = _EXTRAS[name]
            return f"hydra/launcher={extra} needs more packages: pip install -c constraints.txt -e '.[{extra}]'."
        if error.options:
            return f"Unknown {group} '{name}'.{_nearest(name, error.options)} Available: {', '.join(error.options)}."
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.full_key:
        known = [str(key) for key in error.parent_node] if isinstance(error.parent_node, DictConfig) else []
        name = str(error.full_key).rpartition(".")[2]
        return f"Unknown setting '{error.full_key}'.{_nearest(name, known)} Available: {', '.join(known)}."
    return " ".join(str(error).split()) or type(error).__name__


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean '{near[0]}'?" if near else ""
