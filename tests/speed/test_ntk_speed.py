"""The goals of the empirical NTK as ratios of interleaved runs; ``ntk_speed.py`` prints the whole table.

OMP_NUM_THREADS=1 python -m pytest tests/speed -m speed
"""

import os

import pytest
from ntk_cases import CASES, JAX_PYTHON, nngeometry, peak_bytes
from ntk_speed import ensemble, measure, ratios

# Case -> the least of (torch.func / ours, best peer / ours), and the most of (ours / floor).
GOALS = {
    "mlp, 1 output, N = 500": (100.0, 1.4, 1.8),
    "mlp, 10 outputs, N = 500": (3.0, 3.0, 1.8),
    "cnn, 1 output, N = 200": (0.95, 0.95, 1.5),
    "cnn, 10 outputs, N = 100": (1.2, 1.2, 1.8),
}


@pytest.mark.speed
@pytest.mark.parametrize("name", list(GOALS))
def test_beside_the_peers_and_the_floor(name):
    over_recipe, over_best, over_floor = GOALS[name]
    found = ratios(measure(CASES[name], 7))
    peers = {who: ratio for who, ratio in found.items() if who != "ours" and not who.startswith("floor")}
    recipe = [ratio for who, ratio in peers.items() if who.startswith("torch.func")]  # none where it does not fit
    (floor,) = (ratio for who, ratio in found.items() if who.startswith("floor"))
    assert all(ratio >= over_recipe for ratio in recipe), found
    assert all(ratio >= over_best for ratio in peers.values()), found
    assert 1 / floor <= over_floor, found


@pytest.mark.speed
def test_an_ensemble_in_one_call_is_no_slower_than_its_members():
    assert ratios(ensemble(7))["eight calls"] >= 0.95


@pytest.mark.speed
@pytest.mark.parametrize("name", list(CASES))
def test_peak_memory_is_at_or_below_every_peers(name):
    """The recipe holds at least its Jacobian, which is 18 GB in one case."""
    case = CASES[name]
    parameters = sum(p.numel() for p in case.network().parameters())
    peaks = {"torch.func": 4 * case.n * case.outputs * parameters}
    if nngeometry(case) is not None:
        peaks["nngeometry"] = peak_bytes(case, "nngeometry")
    if os.environ.get(JAX_PYTHON):
        peaks["JAX"] = peak_bytes(case, "JAX, structured derivatives")
    ours = peak_bytes(case, "ours")
    assert all(ours <= 1.02 * peak for peak in peaks.values()), (ours, peaks)
