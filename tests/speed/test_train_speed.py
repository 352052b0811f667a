"""The goals of training many networks at once, as ratios of interleaved runs; ``train_speed.py`` prints the table.

OMP_NUM_THREADS=1 python -m pytest tests/speed/test_train_speed.py -m speed
"""

import pytest
import torch
from train_speed import CASES, measure


@pytest.mark.speed
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.device == "cpu"])
def test_beside_a_loop_of_torchs_sgd(name):
    found = measure(CASES[name], runs=5, seconds=0.2)["ratio"]
    assert found["ours"] >= CASES[name].goal, found


@pytest.mark.speed
@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.device == "cuda"])
def test_beside_a_loop_on_a_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    found = measure(CASES[name], runs=5, seconds=0.5)["ratio"]
    assert found["ours"] >= CASES[name].goal, found
