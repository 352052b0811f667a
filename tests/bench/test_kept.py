"""What comparisons keep of a cell goes with the cell."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from bench.compare import Alignment, Empirical, InfiniteWidth, Linearised, Motion, Networks, Rivals, Trajectory
from bench.compare.kept import kept
from bench.train import Trainer
from bench.trained import Trained, members
from models.mlp import mlp
from tasks.hypercube import staircase


def trained_cell() -> Trained:
    tasks = [staircase(d=8, n_train=16, n_test=32, seed=seed) for seed in range(2)]
    return Trainer(richness=1.0, tolerance=0.5, snapshots=3).fit(mlp(8, 16, 1, 1), tasks, members(data=2, init=2))


@pytest.mark.parametrize(
    "comparison",
    [Alignment(), Empirical(), InfiniteWidth(), Linearised(), Motion(), Networks(), Rivals(), Trajectory()],
    ids=lambda comparison: type(comparison).__name__,
)
def test_nothing_is_left_of_a_cell_that_is_done(comparison):
    """A sweep's process has hundreds of cells one after another."""
    trained = trained_cell()
    comparison(trained)
    comparison.arrays(trained)
    gone = weakref.ref(trained)
    gc.collect()
    before = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    del trained
    assert gone() is None  # at once: the collector counts objects, not their bytes
    gc.collect()
    assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) < before


def test_kernels_hold_their_cell():
    assert trained_cell().ntk[0, -1].shape == (48, 16, 1, 1)


def test_the_latest_results_of_a_cell_are_kept():
    asked = []

    @kept(2)
    def double(trained: Trained, number: int) -> Tensor:
        asked.append((trained.members, number))
        return torch.tensor(2 * number)

    one, other = trained_cell(), trained_cell()
    assert [int(double(cell, number)) for number in (1, 2, 1) for cell in (one, other)] == [2, 2, 4, 4, 2, 2]
    assert len(asked) == 4  # each number once a cell
    double(one, 3)
    double(one, 1)
    double(one, 2)
    assert len(asked) == 6  # 2 had made room for 3
