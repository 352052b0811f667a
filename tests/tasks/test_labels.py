"""Targets of classes, by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.labels import DIGITS, target

NAMES = ("plane", "car", "bird", "cat")
LABELS = torch.tensor([3, 0, 1, 2, 0, 3])


def test_pair_is_plus_one_for_the_first() -> None:
    pair = target("toy", ["cat", "plane"], NAMES)
    assert (pair.kind, pair.name, pair.classes) == ("pair", "cat_plane", (3, 0))
    rows = pair.rows(LABELS)
    assert rows.tolist() == [0, 1, 4, 5]
    assert pair.encode(LABELS[rows]).tolist() == [[1], [-1], [-1], [1]]


def test_odd_even() -> None:
    parity = target("toy", "odd_even", DIGITS)
    assert (parity.kind, parity.name) == ("odd_even", "odd_even")
    labels = torch.arange(10)
    assert parity.rows(labels).tolist() == list(range(10))
    assert parity.encode(labels)[:, 0].tolist() == [-1, 1] * 5


@pytest.mark.parametrize("classes", [[2, 0, 3], ["bird", 0, "cat"], (2, "plane", 3)])
def test_subset_is_one_hot_minus_its_mean(classes: Any) -> None:
    subset = target("toy", classes, NAMES)
    assert (subset.kind, subset.name, subset.classes) == ("one_hot", "bird_plane_cat", (2, 0, 3))
    rows = subset.rows(LABELS)
    y = subset.encode(LABELS[rows])
    wanted = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) - 1 / 3
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(y.sum(1), torch.zeros(5))


def test_null_is_all() -> None:
    every = target("toy", None, DIGITS)
    assert (every.name, every.classes) == ("all", tuple(range(10)))
    torch.testing.assert_close(every.encode(torch.arange(10)), torch.eye(10) - 0.1)
    assert target("toy", None, ("0", "1")).kind == "pair"


def test_names_synonyms_and_numbers_agree() -> None:
    wanted = target("toy", [0, 1], NAMES)
    assert target("toy", ["airplane", "car"], NAMES, {"airplane": "plane"}) == wanted
    assert target("toy", ["3", 8], DIGITS) == target("toy", [3, 8], DIGITS)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=10, unique=True), st.lists(st.integers(0, 9), min_size=1))
def test_targets_recover_the_labels(classes: list[int], labels: list[int]) -> None:
    wanted = target("toy", classes, DIGITS)
    all_labels = torch.tensor(labels)
    rows = wanted.rows(all_labels)
    assert rows.tolist() == [i for i, label in enumerate(labels) if label in classes]
    y = wanted.encode(all_labels[rows])
    column = (y[:, 0] < 0).long() if len(classes) == 2 else y.argmax(1)
    assert [classes[i] for i in column.tolist()] == all_labels[rows].tolist()


@pytest.mark.parametrize(
    ("classes", "got"),
    [
        (["plane", "boat"], "['plane', 'boat']"),
        ([0, 4], "[0, 4]"),
        ([0, -1], "[0, -1]"),
        ([0, 0], "[0, 0]"),
        ([0, "plane"], "[0, 'plane']"),
        ([1], "[1]"),
        ([], "[]"),
        ([0, 1.0], "[0, 1.0]"),
        ([0, True], "[0, True]"),
        ("plane", "'plane'"),
        ("odd_even", "'odd_even'"),
        (3, "3"),
    ],
)
def test_refuses(classes: Any, got: str) -> None:
    sentence = (
        "classes of task 'toy' must be null (all), or a list of at least two different ones of plane, car, bird, cat "
        f"or by number, 0 to 3, got {got}."
    )
    with pytest.raises(ValueError, match="^" + re.escape(sentence) + "$"):
        target("toy", classes, NAMES)


def test_refuses_digits() -> None:
    sentence = (
        "classes of task 'toy' must be null (all), odd_even, or a list of at least two different ones of 0, 1, 2, 3, "
        "4, 5, 6, 7, 8, 9, got [3, 33]."
    )
    with pytest.raises(ValueError, match="^" + re.escape(sentence) + "$"):
        target("toy", [3, 33], DIGITS)
