"""Tasks and models by the names of their files in conf/, for studies that train many sizes of them."""

from __future__ import annotations

import inspect
import math
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench import store
from bench.studies.study import ROOT
from tasks.task import Task


def named_task(name: str, n_train: int | None, n_test: int | None, seed: int, noise: float = 0.0) -> Task:
    """The task of ``conf/task/<name>.yaml`` at another size; None: as it is there.

    Raises:
        ValueError: no such task, or a size that it does not have.
    """
    sizes: dict[str, Any] = {key: size for key, size in (("n_train", n_train), ("n_test", n_test)) if size is not None}
    made = make("task", name, None, **sizes, seed=seed, noise=noise)
    assert isinstance(made, Task)
    return made


def named_model(name: str, task: Task, width: int) -> nn.Module:
    """The network of ``conf/model/<name>.yaml`` of this width, for the shapes of the task.

    Raises:
        ValueError: no such model.
    """
    made = make("model", name, shapes_of(task), width=width)
    assert isinstance(made, nn.Module)
    return made


def disjoint_draws(name: str, draws: int, n_train: int, n_test: int, seed: int, noise: float = 0.0) -> list[Task]:
    """Training sets that share no sample, with one test set for all of them.

    Raises:
        ValueError: as for ``named_task``; the data must hold ``draws * n_train + n_test`` samples.
    """
    pool = named_task(name, draws * n_train, n_test, seed, noise)
    return [part(pool, range(i * n_train, (i + 1) * n_train)) for i in range(draws)]


def part(task: Task, rows: Sequence[int] | range) -> Task:
    """The task with these rows of its training set only."""
    index = torch.as_tensor(list(rows))
    return replace(task, x_train=task.x_train[index], y_train=task.y_train[index])


def shapes_of(task: Task) -> dict[str, Any]:
    """What a model's maker may ask for by name."""
    shape = task.x_shape
    known: dict[str, Any] = {"in_features": math.prod(shape), "out_features": task.outputs}
    return known | ({"in_channels": shape[0], "image_size": shape[1]} if len(shape) == 3 else {})


def make(group: str, name: str, more: Mapping[str, Any] | None = None, **overrides: Any) -> Any:
    """What ``conf/<group>/<name>.yaml`` makes, with other settings; ``more`` where its maker asks for it by name.

    Raises:
        ValueError: no such file, or what its maker refuses.
    """
    folder = ROOT / "conf" / group
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"Unknown {group} '{name}': use one of {', '.join(known)}.")
    settings = dict(store.read_yaml(folder / f"{name}.yaml"))
    maker: Any = pydoc.locate(settings.pop("_target_"))
    parameters = inspect.signature(maker).parameters
    return maker(
        **{key: value for key, value in (more or {}).items() if key in parameters}, **{**settings, **overrides}
    )
