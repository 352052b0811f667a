"""Batches of eigenlearning and of kernel regression beside loops; ``eigenlearning_speed.py`` prints the whole table.

OMP_NUM_THREADS=1 python -m pytest tests/speed/test_eigenlearning_speed.py -m speed
"""

import statistics

import pytest
from eigenlearning_speed import CASES, measure, ratio


@pytest.mark.speed
@pytest.mark.parametrize("name", list(CASES))
def test_a_batch_is_faster_than_a_loop(name):
    seconds = measure(name, 5)
    assert ratio(seconds) > 1, seconds
    if "modes" in name:
        assert statistics.median(seconds["batch"]) < 0.05, seconds  # CPU seconds
