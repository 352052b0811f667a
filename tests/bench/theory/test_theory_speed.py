"""Ratios of batched calls to loops; absolute times are printed, never asserted (pytest -m speed -s)."""

import time
from collections.abc import Callable

import pytest
import torch
from theory_references import corners, network_kernel

from bench.theory.eigenlearning import eigenlearning
from bench.theory.trials import kernel_trials

pytestmark = pytest.mark.speed


def best(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("name", ["power law", "exponential", "isotropic"])
def test_a_batch_of_n_against_a_loop_over_n(name, capsys):
    i = torch.arange(1, 10_001, dtype=torch.float64)
    lam = {"power law": i**-2, "exponential": (-i / 100).exp(), "isotropic": i**0}[name]
    n = torch.logspace(0, 3.9, 100, dtype=torch.float64)

    def batch():
        return eigenlearning(lam, lam, n, 1e-3, 0.1).test_mse

    def loop():
        return torch.stack([eigenlearning(lam, lam, size, 1e-3, 0.1).test_mse for size in n])

    torch.testing.assert_close(batch(), loop(), rtol=1e-12, atol=0)
    together, one_by_one = best(batch, 5), best(loop, 2)
    with capsys.disabled():
        print(f"\n{name}: 10,000 modes x 100 n in {together * 1e3:.0f} ms, {one_by_one / together:.1f} x a loop")
    # The loop does the same arithmetic on one row; it adds a sort and a hundred times the calls.
    assert one_by_one > together


def test_batched_trials_against_a_loop_over_them(capsys):
    x = corners(8)
    kernel, target = network_kernel(8)(x), x[:, :3].prod(1, keepdim=True)

    def run(trials: int, repeats: int) -> Callable[[], None]:
        def call() -> None:
            rng = torch.Generator().manual_seed(0)
            for _ in range(repeats):
                kernel_trials(kernel, target, 32, trials=trials, generator=rng)

        return call

    together, one_by_one = best(run(300, 1), 3), best(run(1, 300), 2)
    with capsys.disabled():
        print(f"\n300 trials of 32 from 256 points in {together * 1e3:.0f} ms, {one_by_one / together:.1f} x a loop")
    assert one_by_one > together
