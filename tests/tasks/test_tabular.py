"""scikit-learn's data, found again row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch

from tasks.tabular import breast_cancer, digits, wine
from tasks.task import Task


def rows_of(x: torch.Tensor, reference: np.ndarray) -> list[set[int]]:
    """The rows of the reference that each row of x equals (scikit-learn's data may repeat a row)."""
    distances = torch.cdist(x.double(), torch.tensor(reference, dtype=torch.float64))
    return [set((d < 1e-3).nonzero()[:, 0].tolist()) for d in distances]


def test_digits_default_is_the_theory_s() -> None:
    task = digits()
    assert (task.name, task.n_train, task.n_test, task.x_shape, task.outputs) == ("digits-odd_even", 256, 512, (64,), 1)
    assert (task.domain, task.noise) == (None, 0.0)
    x, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = x - x.mean(0)
    x = 8 * x / np.linalg.norm(x, axis=1, keepdims=True)
    used: set[int] = set()
    for inputs, targets in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
        for found, y in zip(rows_of(inputs, x), targets[:, 0].tolist(), strict=True):
            assert found
            assert {1 if labels[row] % 2 else -1 for row in found} == {y}
            used |= found
    assert len(used) == 256 + 512  # without replacement, train and test disjoint


def test_digits_pair_ten_classes_and_subset() -> None:
    x, labels = sklearn.datasets.load_digits(return_X_y=True)

    def drawn(classes: Any) -> tuple[Task, list[int]]:
        task = digits(classes=classes, n_train=60, n_test=30, inputs="raw")
        return task, [labels[min(found)] for found in rows_of(task.x_train, x)]

    task, found = drawn([3, 8])
    assert task.name == "digits-3_8"
    assert task.y_train[:, 0].tolist() == [1 if label == 3 else -1 for label in found]
    task, found = drawn(None)
    assert (task.name, task.outputs) == ("digits-all", 10)
    torch.testing.assert_close(task.y_train, torch.eye(10)[found] - 0.1)
    task, found = drawn([7, 1, 4])
    assert task.name == "digits-7_1_4"
    assert (task.y_train.argmax(1) == torch.tensor([[7, 1, 4].index(label) for label in found])).all()


def test_digits_centre_is_the_mean_of_everything_for_any_subset() -> None:
    x, _ = sklearn.datasets.load_digits(return_X_y=True)
    task, raw = (digits(classes=[3, 8], n_train=9, n_test=9, inputs=inputs) for inputs in ("sphere", "raw"))
    centred = raw.x_train.double() - torch.tensor(x.mean(0))
    torch.testing.assert_close(task.x_train.double(), 8 * centred / centred.norm(dim=1, keepdim=True))


def test_breast_cancer() -> None:
    task = breast_cancer(inputs="raw")
    assert task.name == "breast_cancer-malignant_benign"
    assert (task.n_train, task.n_test, task.x_shape, task.outputs) == (100, 300, (30,), 1)
    x, labels = sklearn.datasets.load_breast_cancer(return_X_y=True)
    malignant = sklearn.datasets.load_breast_cancer().target_names.tolist().index("malignant")
    used: set[int] = set()
    for inputs, targets in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
        for found, y in zip(rows_of(inputs, x), targets[:, 0].tolist(), strict=True):
            assert {1 if labels[row] == malignant else -1 for row in found} == {y}
            used |= found
    assert len(used) == 400
    swapped = breast_cancer(classes=["benign", "malignant"])
    assert torch.equal(swapped.y_train, -task.y_train)


def test_wine() -> None:
    task = wine(inputs="raw")
    assert (task.name, task.n_train, task.n_test, task.x_shape, task.outputs) == ("wine-all", 100, 78, (13,), 3)
    x, labels = sklearn.datasets.load_wine(return_X_y=True)
    found = [min(rows) for rows in rows_of(torch.cat([task.x_train, task.x_test]), x)]
    assert sorted(found) == list(range(178))
    torch.testing.assert_close(torch.cat([task.y_train, task.y_test]), torch.eye(3)[labels[found]] - 1 / 3)
    pair = wine(classes=[2, 0], n_train=60, n_test=40)
    assert (pair.name, pair.outputs) == ("wine-2_0", 1)


@pytest.mark.parametrize("make", [digits, breast_cancer, wine])
@pytest.mark.parametrize("inputs", ["sphere", "standardised", "unit"])
@pytest.mark.filterwarnings("ignore:Inputs 'unit'")
def test_inputs_have_the_norm_they_promise(make: Callable[..., Task], inputs: str) -> None:
    task = make(inputs=inputs)
    square = task.x_train.double().square().sum(1)
    if inputs == "standardised":
        # digits are centred by all samples, so only on average over those
        assert float(square.mean()) == pytest.approx(task.x_shape[0], rel=1e-5)
    else:
        norm = 1.0 if inputs == "unit" else math.sqrt(task.x_shape[0])
        torch.testing.assert_close(square.sqrt(), torch.full_like(square, norm), rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [breast_cancer, wine])
def test_every_feature_counts_where_units_differ(make: Callable[..., Task]) -> None:
    """One overall scale would leave one feature: 98 % (cancer) and 99.8 % (wine) of the variance are one direction."""
    square = make(inputs="standardised").x_train.square().mean(0)
    torch.testing.assert_close(square, torch.ones_like(square))
    share = make(inputs="sphere").x_train.square().mean(0)
    assert share.max() < 3 * share.min()


def test_refuses_more_rows_than_there_are() -> None:
    sentence = r"^n_train \+ n_test = 100 \+ 79 must be at most the 178 rows of task 'wine-all': they are drawn without"
    with pytest.raises(ValueError, match=sentence):
        wine(n_test=79)
    sentence = r"^n_train \+ n_test = 256 \+ 512 must be at most the 357 rows of task 'digits-3_8': they are drawn wit"
    with pytest.raises(ValueError, match=sentence):
        digits(classes=[3, 8])


@pytest.mark.parametrize("make", [digits, breast_cancer, wine])
def test_refuses_classes_and_inputs(make: Callable[..., Task]) -> None:
    with pytest.raises(ValueError, match=r"^classes of task '.*' must be null \(all\), .*, got 'parity'\.$"):
        make(classes="parity")
    with pytest.raises(
        ValueError, match=r"^inputs of task '.*' must be one of standardised, sphere, raw, unit, got 'w"
    ):
        make(inputs="whitened")
