"""Times eigenlearning on 10,000 modes x 100 n, and batched trials of kernel regression, against loops; interleaved.

    OMP_NUM_THREADS=1 python tests/speed/eigenlearning_speed.py [--runs 7] [--json F]

CPU seconds of one thread, medians; ratios are medians over pairs of neighbouring runs. Before anything is timed, batch
and loop must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from ntk_speed import processor, versions  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.studies.populations import corners, ntk  # noqa: E402
from bench.theory.eigenlearning import eigenlearning  # noqa: E402
from bench.theory.trials import kernel_trials  # noqa: E402

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]
COMMAND = "OMP_NUM_THREADS=1 python tests/speed/eigenlearning_speed.py --json docs/results/eigenlearning_speed.json"


def theory(eigenvalues: Tensor) -> Pair:
    """Test MSE at a hundred n in one call, and in a hundred."""
    n = torch.logspace(0, 3.9, 100, dtype=torch.float64)

    def batch() -> Tensor:
        return eigenlearning(eigenvalues, eigenvalues, n, 1e-3, 0.1).test_mse

    def loop() -> Tensor:
        return torch.stack([eigenlearning(eigenvalues, eigenvalues, size, 1e-3, 0.1).test_mse for size in n])

    return batch, loop


def trials(n: int) -> Pair:
    """Mean test MSE of 300 training sets from the 256 corners of the 8-cube, in one call and in 300 of one set each."""
    x = corners(8)
    kernel, target = ntk(8, 4)(x), x[:, :3].prod(1, keepdim=True)

    def batch() -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return kernel_trials(kernel, target, n, trials=300, generator=rng).population_mse.mean()

    def loop() -> Tensor:
        rng = torch.Generator().manual_seed(0)
        errors = [kernel_trials(kernel, target, n, trials=1, generator=rng).population_mse for _ in range(300)]
        return torch.cat(errors).mean()

    return batch, loop


MODES = torch.arange(1, 10_001, dtype=torch.float64)
CASES: dict[str, Callable[[], Pair]] = {
    "10,000 modes x 100 n, power law": lambda: theory(MODES**-2),
    "10,000 modes x 100 n, exponential": lambda: theory((-MODES / 100).exp()),
    "10,000 modes x 100 n, isotropic": lambda: theory(MODES**0),
    "300 trials of 32 from 256 points": lambda: trials(32),
    "300 trials of 128 from 256 points": lambda: trials(128),
}


def measure(name: str, runs: int) -> dict[str, list[float]]:
    """CPU seconds of ``batch`` and ``loop``, interleaved."""
    batch, loop = CASES[name]()
    # The trials' draws come in another order in the loop: means of 300 agree within their error, the theory exactly.
    torch.testing.assert_close(batch(), loop(), rtol=1e-12 if "modes" in name else 0.1, atol=0.0)
    seconds: dict[str, list[float]] = {"batch": [], "loop": []}
    for _ in range(runs):
        for which, call in (("batch", batch), ("loop", loop)):
            start = time.process_time()
            call()
            seconds[which].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]]) -> float:
    """How many times longer the loop takes."""
    return statistics.median(loop / batch for batch, loop in zip(seconds["batch"], seconds["loop"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in CASES:
        seconds = measure(name, options.runs)
        results[name] = {"seconds": seconds, "ratio": ratio(seconds)}
        batch, loop = (1e3 * statistics.median(seconds[which]) for which in ("batch", "loop"))
        print(
            f"{name}: {batch:.1f} ms, in a loop {loop:.0f} ms, {results[name]['ratio']:.1f} times as long", flush=True
        )
    if options.json:
        # CPU seconds, too, are longer on a busy machine, whose caches are shared.
        load = {"load_average": os.getloadavg(), "cores": os.cpu_count()}
        head = {"command": COMMAND, "processor": processor(), "versions": versions(), **load}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
