"""What holds for every task that needs no data files."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tasks.draw import generator
from tasks.gaussian import stripe
from tasks.hypercube import monomial, parity, staircase
from tasks.sphere import circle_modes, harmonic, single_index
from tasks.tabular import breast_cancer, digits, wine
from tasks.task import Task


def circle_points(**arguments: Any) -> Task:
    return circle_modes(points=1000, **arguments)


def high_parity(**arguments: Any) -> Task:
    return parity(d=50, **arguments)


FACTORIES = [
    staircase,
    parity,
    high_parity,
    monomial,
    single_index,
    harmonic,
    circle_modes,
    circle_points,
    stripe,
    digits,
    breast_cancer,
    wine,
]
every_factory = pytest.mark.parametrize("make", FACTORIES, ids=lambda make: make.__name__)
Factory = Callable[..., Task]


def same(a: Task, b: Task) -> bool:
    pairs = ((a.x_train, b.x_train), (a.y_train, b.y_train), (a.x_test, b.x_test), (a.y_test, b.y_test))
    return all(torch.equal(u, v) for u, v in pairs)


@every_factory
def test_sizes_and_dtype(make: Factory) -> None:
    task = make(n_train=20, n_test=30, seed=0)
    assert (task.n_train, task.n_test) == (20, 30)
    assert {t.dtype for t in (task.x_train, task.y_train, task.x_test, task.y_test)} == {torch.float32}
    assert task.noise == 0


@every_factory
def test_a_seed_decides_everything(make: Factory) -> None:
    torch.manual_seed(0)
    first = make(n_train=20, n_test=30, seed=7, noise=0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert same(first, make(n_train=20, n_test=30, seed=7, noise=0.5))
    assert torch.equal(torch.get_rng_state(), before)  # and the global generator is left alone
    assert not same(first, make(n_train=20, n_test=30, seed=8, noise=0.5))


@every_factory
def test_the_test_points_are_those_of_every_n_train(make: Factory) -> None:
    # own units are measured on the training rows: compare what was drawn
    raw = {"inputs": "raw"} if make in (breast_cancer, wine) else {}
    few, many = (make(n_train=n, n_test=30, seed=0, **raw) for n in (5, 60))
    assert torch.equal(few.x_test, many.x_test)
    assert torch.equal(few.y_test, many.y_test)


@every_factory
def test_noise_touches_training_labels_only(make: Factory) -> None:
    clean, noisy, noisier = (make(n_train=20, n_test=30, seed=0, noise=noise) for noise in (0.0, 0.25, 4.0))
    assert noisy.noise == 0.25
    for field in ("x_train", "x_test", "y_test"):
        assert torch.equal(getattr(clean, field), getattr(noisy, field))
    drawn = noisy.y_train - clean.y_train
    assert (drawn != 0).all()
    torch.testing.assert_close(noisier.y_train - clean.y_train, 4 * drawn)  # one draw, scaled by the deviation


@every_factory
@pytest.mark.parametrize("field", ["n_train", "n_test"])
def test_refuses_sizes(make: Factory, field: str) -> None:
    for value in (0, 2.5):
        with pytest.raises(ValueError, match=rf"^{field} must be a whole number of at least 1, got {value}\.$"):
            make(**{field: value})


@every_factory
def test_refuses_noise_and_seed(make: Factory) -> None:
    with pytest.raises(ValueError, match=r"^noise of task '.*' must be a variance, finite and >= 0, got -1\.0\.$"):
        make(n_train=5, n_test=5, noise=-1.0)
    with pytest.raises(ValueError, match=r"^seed must be a whole number"):
        make(n_train=5, n_test=5, seed=-1)


def test_stripe_is_the_theory_s() -> None:
    task = stripe(d=10, n_train=5000, n_test=10)
    for x1, y in zip(task.x_train[:, 0].tolist(), task.y_train[:, 0].tolist(), strict=True):
        assert y == (-1 if -0.3 < x1 < 1.18549 else 1)
    assert (task.name, task.domain, task.x_shape) == ("stripe", None, (10,))
    # half of a Gaussian lies inside, so the labels are balanced
    inside = (math.erf(1.18549 / math.sqrt(2)) + math.erf(0.3 / math.sqrt(2))) / 2
    assert abs(inside - 0.5) < 1e-4
    assert abs(task.y_train.mean()) < 5 / math.sqrt(5000)


def test_stripe_inputs_are_standard_gaussian_and_independent_between_seeds() -> None:
    a, b = (stripe(n_train=2000, n_test=10, seed=seed).x_train.flatten().double() for seed in (0, 1))
    error = 5 / math.sqrt(len(a))
    assert abs(a.mean()) < error
    assert abs(a.var() - 1) < math.sqrt(2) * error
    assert abs((a * b).mean()) < error


def test_inputs_are_not_the_first_weights_of_the_same_seed() -> None:
    weights = torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    task = stripe(n_train=20, n_test=30, seed=0)
    assert not (task.x_test == weights).any()
    assert (task.x_test == torch.randn(30, 10, generator=generator(0))).all()


def test_stripe_refuses() -> None:
    with pytest.raises(ValueError, match=r"^d of the stripe must be a whole number of at least 1, got 0\.$"):
        stripe(d=0)
