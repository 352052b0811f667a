"""The dataclass: what it refuses, and the noise it carries."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch

from tasks.draw import generator
from tasks.task import Task, with_label_noise


def fields(**changed: Any) -> dict[str, Any]:
    good = {
        "name": "toy",
        "x_train": torch.ones(4, 2, 3),
        "y_train": torch.ones(4, 2),
        "x_test": torch.ones(5, 2, 3),
        "y_test": torch.ones(5, 2),
    }
    return good | changed


def test_properties() -> None:
    task = Task(**fields())
    assert (task.n_train, task.n_test, task.x_shape, task.outputs) == (4, 5, (2, 3), 2)
    assert (task.domain, task.noise) == (None, 0.0)


def test_is_frozen_and_compares_by_identity() -> None:
    task = Task(**fields())
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.noise = 1.0  # type: ignore[misc]
    assert task == task
    assert task != Task(**fields())


def test_to_moves_every_tensor_and_keeps_the_rest() -> None:
    task = Task(**fields(domain="sphere", noise=0.25)).to("meta")
    assert {t.device.type for t in (task.x_train, task.y_train, task.x_test, task.y_test)} == {"meta"}
    assert (task.name, task.domain, task.noise) == ("toy", "sphere", 0.25)


def test_float64_is_allowed() -> None:
    double = {k: v.double() for k, v in fields().items() if k != "name"}
    assert Task("toy", **double).x_train.dtype == torch.float64


NAN, INF = torch.full((4, 2), math.nan), torch.full((5, 2, 3), math.inf)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"name": "a/b"},
            "name of a task must be letters, digits, '.', '_' or '-', beginning with a letter or digit, ",
        ),
        ({"name": ""}, "name of a task must be"),
        ({"name": ".hidden"}, "name of a task must be"),
        ({"domain": "torus"}, "domain of task 'toy' must be None or one of ('hypercube', 'sphere', 'circle'), got"),
        ({"noise": -1.0}, "noise of task 'toy' must be a variance, finite and >= 0, got -1.0."),
        ({"noise": math.nan}, "noise of task 'toy' must be a variance, finite and >= 0, got nan."),
        ({"noise": "a"}, "noise of task 'toy' must be a variance, finite and >= 0, got 'a'."),
        ({"x_train": [[1.0]]}, "x_train of task 'toy' must be a tensor of float32 or float64, got list."),
        ({"y_test": torch.ones(5, 2).long()}, "y_test of task 'toy' must be a tensor of float32 or float64, got torch"),
        (
            {"y_test": torch.ones(5, 2).double()},
            "y_test of task 'toy' must have the dtype and device of x_train (torch",
        ),
        (
            {"x_test": torch.ones(5, 2, 3, device="meta")},
            "x_test of task 'toy' must have the dtype and device of x_tra",
        ),
        ({"y_train": torch.ones(4)}, "y_train of task 'toy' must have 2 axes [n, c], got shape [4]."),
        ({"y_train": torch.ones(4, 2, 1)}, "y_train of task 'toy' must have 2 axes [n, c], got shape [4, 2, 1]."),
        ({"x_train": torch.ones(4)}, "x_train of task 'toy' must have at least 2 axes [n, *shape], got shape [4]."),
        ({"x_test": torch.ones(0, 2, 3)}, "x_test of task 'toy' must not be empty, got shape [0, 2, 3]."),
        ({"y_train": torch.ones(4, 0)}, "y_train of task 'toy' must not be empty, got shape [4, 0]."),
        ({"y_train": NAN}, "NaN in y_train of task 'toy'."),
        ({"x_test": INF}, "Infinity in x_test of task 'toy'."),
        ({"y_train": torch.ones(3, 2)}, "x_train and y_train of task 'toy' must have as many rows, got 4 and 3."),
        ({"y_test": torch.ones(6, 2)}, "x_test and y_test of task 'toy' must have as many rows, got 5 and 6."),
        (
            {"x_test": torch.ones(5, 6)},
            "x_train and x_test of task 'toy' must agree after the first axis, got [4, 2, 3]",
        ),
        (
            {"y_test": torch.ones(5, 1)},
            "y_train and y_test of task 'toy' must agree after the first axis, got [4, 2] and",
        ),
    ],
)
def test_refuses(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Task(**fields(**changed))


def big_task() -> Task:
    n = 20_000
    return Task("toy", torch.zeros(n, 1), torch.zeros(n, 2), torch.zeros(3, 1), torch.zeros(3, 2))


def test_noise_has_its_variance_and_leaves_the_test_labels() -> None:
    task = with_label_noise(big_task(), 0.25, generator(0))
    drawn = task.y_train.double()
    count = drawn.numel()
    assert abs(drawn.mean()) < 5 * 0.5 / math.sqrt(count)
    assert abs(drawn.var() - 0.25) < 5 * 0.25 * math.sqrt(2 / count)  # the variance of a Gaussian's sample variance
    assert abs((drawn[:, 0] * drawn[:, 1]).mean()) < 5 * 0.25 / math.sqrt(len(drawn))  # outputs are independent
    assert task.noise == 0.25
    assert (task.y_test == 0).all()


def test_noise_adds_up() -> None:
    twice = with_label_noise(with_label_noise(big_task(), 0.25, generator(0)), 0.5, generator(1))
    assert twice.noise == 0.75
    assert abs(twice.y_train.double().var() - 0.75) < 5 * 0.75 * math.sqrt(2 / twice.y_train.numel())


def test_noise_zero_draws_nothing() -> None:
    task, rng = big_task(), generator(0)
    state = rng.get_state()
    assert with_label_noise(task, 0.0, rng) is task
    assert (rng.get_state() == state).all()


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan, "much", True])
def test_noise_refuses(noise: Any) -> None:
    with pytest.raises(ValueError, match=r"noise of task 'toy' must be a variance, finite and >= 0, got"):
        with_label_noise(big_task(), noise, generator(0))
