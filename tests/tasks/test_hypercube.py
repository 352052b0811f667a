"""Boolean targets against their definitions, written out."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.hypercube import monomial, parity, staircase
from tasks.task import Task


def everything(task: Task) -> tuple[Tensor, Tensor]:
    return torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])[:, 0]


def corners(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.tolist()}


@given(st.integers(1, 62), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_corners_are_distinct_and_disjoint(d: int, n_train: int, n_test: int, seed: int) -> None:
    if n_train + n_test > 2**d:
        with pytest.raises(ValueError, match=rf"must be at most the {2**d} corners of the hypercube of d = {d}: they"):
            parity(d, 1, n_train=n_train, n_test=n_test, seed=seed)
        return
    task = parity(d, 1, n_train=n_train, n_test=n_test, seed=seed)
    x, _ = everything(task)
    assert set(x.unique().tolist()) <= {-1.0, 1.0}
    assert len(corners(x)) == n_train + n_test
    assert task.x_shape == (d,)
    assert task.domain == "hypercube"


def test_the_whole_cube_can_be_drawn() -> None:
    x, _ = everything(staircase(d=8, n_train=100, n_test=156))
    assert corners(x) == set(itertools.product((-1.0, 1.0), repeat=8))


@pytest.mark.parametrize("d", [16, 20, 21, 62])
def test_coordinates_are_fair_and_uncorrelated(d: int) -> None:
    n = 4000
    x = parity(d, 2, n_train=n, n_test=1).x_train.double()
    error = 5 / math.sqrt(n)
    assert (x.mean(0).abs() < error).all()
    assert ((x.T @ x / n - torch.eye(d)).abs() < error).all()


def test_staircase_is_the_theory_s() -> None:
    task = staircase()
    assert (task.name, task.n_train, task.n_test, task.x_shape, task.outputs) == ("staircase", 128, 512, (16,), 1)
    for row, y in zip(task.x_train.tolist(), task.y_train[:, 0].tolist(), strict=True):
        x1, x2, x3 = row[:3]
        assert y == pytest.approx((x1 + x1 * x2 + x1 * x2 * x3) / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("degree", [1, 2, 5, 8])
def test_staircase_has_unit_mean_square_and_equal_steps(degree: int) -> None:
    x, y = everything(staircase(d=8, degree=degree, n_train=128, n_test=128))
    assert float(y.square().mean()) == pytest.approx(1, abs=1e-5)
    for k in range(1, 9):  # over the whole cube, its coefficient on each parity is a mean
        wanted = 1 / math.sqrt(degree) if k <= degree else 0
        assert float((y * x[:, :k].prod(1)).mean()) == pytest.approx(wanted, abs=1e-5)


def test_staircase_of_another_degree_has_another_name() -> None:
    assert staircase(degree=4).name == "staircase4"


def test_parity_is_a_monomial_of_the_first_coordinates() -> None:
    a, b = parity(10, 3, n_train=30, n_test=30), monomial(10, [0, 1, 2], n_train=30, n_test=30)
    assert torch.equal(a.y_train, b.y_train)
    assert (a.name, b.name) == ("parity3", "monomial-0_1_2")
    assert torch.equal(a.y_train[:, 0], a.x_train[:, 0] * a.x_train[:, 1] * a.x_train[:, 2])


def test_monomials_are_orthonormal() -> None:
    sets = [c for k in range(5) for c in itertools.combinations(range(4), k)]
    y = torch.stack([everything(monomial(4, indices, n_train=8, n_test=8))[1] for indices in sets])
    assert torch.equal(y @ y.T / 16, torch.eye(16))


def test_no_coordinates_make_the_constant() -> None:
    for task in (parity(4, 0, n_train=3, n_test=3), monomial(4, [], n_train=3, n_test=3)):
        assert (task.y_train == 1).all()
        assert (task.y_test == 1).all()


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (staircase, {"d": 63}, "d of the hypercube must be a whole number from 1 to 62, got 63."),
        (staircase, {"d": 0}, "d of the hypercube must be a whole number from 1 to 62, got 0."),
        (staircase, {"d": 4, "degree": 5}, "degree of the staircase must be a whole number from 1 to 4, got 5."),
        (staircase, {"degree": 0}, "degree of the staircase must be a whole number from 1 to 16, got 0."),
        (parity, {"d": 4, "k": 5}, "k of the parity must be a whole number from 0 to 4, got 5."),
        (parity, {"k": -1}, "k of the parity must be a whole number from 0 to 20, got -1."),
        (parity, {"d": 16.0}, "d of the hypercube must be a whole number from 1 to 62, got 16.0."),
        (
            monomial,
            {"indices": [0, 16]},
            "each of the indices of the monomial must be a whole number from 0 to 15, got",
        ),
        (monomial, {"indices": [1, 1]}, "indices of the monomial must all be different, got [1, 1]."),
        (monomial, {"indices": "01"}, "indices of the monomial must be a list of whole numbers, got '01'."),
        (monomial, {"indices": 3}, "indices of the monomial must be a list of whole numbers, got 3."),
    ],
)
def test_refuses(make: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        make(**arguments)
