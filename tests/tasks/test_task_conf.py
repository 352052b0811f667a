"""Every file of conf/task makes its task, and says what every task says."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
from omegaconf import DictConfig, OmegaConf

from tasks.task import Task

CONF = Path(__file__).resolve().parents[2] / "conf" / "task"
FILES = sorted(file for file in CONF.glob("*.yaml") if "_target_: tasks." in file.read_text())  # not a user's own
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
SYNTHETIC = {"staircase", "parity", "monomial", "single_index", "harmonic", "circle", "stripe"}
TABULAR = {"digits", "digits10", "breast_cancer", "wine"}
IMAGES = {"mnist", "fashion_mnist", "cifar10", "svhn"}


def read(file: Path) -> DictConfig:
    conf = OmegaConf.load(file)
    assert isinstance(conf, DictConfig)
    return conf


def test_the_needed_ones_are_there() -> None:
    assert {file.stem for file in FILES} >= SYNTHETIC | TABULAR | IMAGES


@every_file
def test_names_every_argument_of_its_factory(file: Path) -> None:
    conf = read(file)
    arguments = inspect.signature(hydra.utils.get_object(conf._target_)).parameters
    assert set(conf) == {"_target_", *arguments}
    assert (conf.seed, conf.noise) == (0, 0.0)
    assert isinstance(conf.noise, float)


@every_file
def test_makes_its_task(file: Path, request: pytest.FixtureRequest) -> None:
    conf = read(file)
    if "folder" in conf:
        folder = request.getfixturevalue("data_folder")
        if not (folder / f"{file.stem}.npz").is_file():
            pytest.skip(f"no {file.stem}.npz in the data folder")
        conf.folder = str(folder)
    task = hydra.utils.instantiate(conf)
    assert isinstance(task, Task)
    assert (task.n_train, task.n_test) == (conf.n_train, conf.n_test)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("staircase", {"n_train": 128, "n_test": 512, "x_shape": (16,), "outputs": 1, "name": "staircase"}),
        ("parity", {"n_train": 400, "x_shape": (20,), "outputs": 1, "name": "parity3"}),
        ("single_index", {"n_train": 256, "n_test": 512, "x_shape": (16,), "name": "single_index"}),
        ("stripe", {"n_train": 256, "x_shape": (10,), "name": "stripe"}),
        ("digits", {"n_train": 256, "n_test": 512, "outputs": 1, "name": "digits-odd_even"}),
        ("digits10", {"n_train": 256, "n_test": 512, "outputs": 10, "name": "digits-all"}),
        ("breast_cancer", {"n_train": 100, "n_test": 300, "outputs": 1}),
        ("wine", {"n_train": 100, "n_test": 78, "outputs": 3}),
    ],
)
def test_the_sizes_of_the_main_tasks(name: str, wanted: dict[str, Any]) -> None:
    task = hydra.utils.instantiate(read(CONF / f"{name}.yaml"))
    assert {field: getattr(task, field) for field in wanted} == wanted
