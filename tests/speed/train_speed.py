"""Training many networks: CPU seconds a step beside a Python loop over single networks with torch.optim.SGD.

    OMP_NUM_THREADS=1 python tests/speed/train_speed.py [--runs 5] [--json docs/results/train_speed.json] [--case NAME]

One thread, all contenders interleaved in one process; "ratio" is the median over the runs of torch / contender. "ours"
is what the trainer does by itself, the other rows its engines by name. "of ceiling": FLOPs (torch's own count of a
forward and backward pass) a second, over those of a 1,024 x 1,024 product in the same run. "adaptive": the step rule
``c / lambda_max(K_t / N)`` beside a loop that refreshes, checks and steps back by the same rule. A case "cuda: ..."
runs where there is a GPU, on its clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from ntk_speed import processor, versions  # noqa: E402

from bench.ntk import empirical_ntk  # noqa: E402
from bench.train import Trainer  # noqa: E402
from bench.trained import Member  # noqa: E402
from models.cnn import cnn  # noqa: E402
from models.mlp import mlp  # noqa: E402
from tasks.task import Task  # noqa: E402

RATE, STEP = 1e-3, 0.5
WARM = 3
"""Steps that are not counted: the first allocate."""
LONGEST = 25
RISE = 0.1


@dataclass(frozen=True)
class Case:
    """So many networks of one shape; ``goal``: the ratio to reach. ``shape``: of an input; three axes: a CNN."""

    members: int
    n: int
    shape: tuple[int, ...]
    width: int
    depth: int
    goal: float
    engines: tuple[str, ...] = ("vmap", "loop")
    adaptive: bool = False
    device: str = "cpu"

    def model(self) -> nn.Module:
        if len(self.shape) > 1:
            return cnn(self.shape[0], self.width, self.depth, 1, readout="gap")
        return mlp(self.shape[0], self.width, self.depth, 1, b_std=0.4, readout_b_std=0.3)

    def task(self) -> Task:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(self.n + 1, *size, generator=generator) for size in (self.shape, (1,)))
        return Task("noise", x[:-1], y[:-1], x[-1:], y[-1:])


CASES = {
    "64 networks, N=32, width 32": Case(64, 32, (8,), 32, 1, 20.0, ("vmap",), adaptive=True),
    "32 networks, N=64, width 128, depth 2": Case(32, 64, (10,), 128, 2, 2.5, ("vmap",), adaptive=True),
    "6 networks, N=256, width 256": Case(6, 256, (15,), 256, 1, 0.95, adaptive=True),
    "8 networks, N=256, d=784, width 256, depth 2": Case(8, 256, (784,), 256, 2, 0.95),
    "5 networks, N=512, width 1024": Case(5, 512, (12,), 1024, 1, 0.95),
    "2 networks, N=64, width 4096": Case(2, 64, (8,), 4096, 1, 0.95),
    "4 CNNs, N=32, 8x8, 8 channels, depth 2": Case(4, 32, (3, 8, 8), 8, 2, 0.95),
    "3 CNNs, N=64, 16x16, 32 channels, depth 3": Case(3, 64, (3, 16, 16), 32, 3, 0.95),
    "cuda: 32 networks, N=256, width 256, depth 2": Case(32, 256, (64,), 256, 2, 20.0, device="cuda"),
}


def clock(device: str) -> float:
    """CPU seconds (the machine may be busy), or seconds where a GPU works."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Stopwatch:
    """Watches a training, and sees no moment of it: the time between its steps."""

    def __init__(self, device: str) -> None:
        self.device, self.begun, self.now, self.steps = device, 0.0, 0.0, 0

    def due(self, iteration: int) -> bool:
        if iteration == WARM:
            self.begun = clock(self.device)
        elif iteration > WARM:
            self.now, self.steps = clock(self.device), iteration - WARM
        return False

    def look(self, moment: object) -> None:
        raise AssertionError("never due")


def ours(case: Case, method: str, steps: int, adaptive: bool) -> float:
    """Seconds of one step of all networks."""
    watches: list[Stopwatch] = []

    def watch(batch: object) -> Stopwatch:
        watches.append(Stopwatch(case.device))
        return watches[-1]

    rule = {"step": STEP, "tolerance": 1e-30} if adaptive else {"rate": RATE, "tolerance": 0.0}
    trainer = Trainer(richness=1.0, max_steps=steps + WARM, method=method, device=case.device, **rule)
    members = [Member(0, i) for i in range(case.members)]
    list(trainer.parts(case.model(), [case.task()], members, watch=watch))
    return sum((watch.now - watch.begun) / watch.steps for watch in watches)


class Single:
    """One network as one would train it by hand."""

    def __init__(self, case: Case) -> None:
        task = case.task()
        self.net = case.model().to(case.device)
        self.gamma = case.width**0.5
        self.x, self.y = task.x_train.to(case.device), task.y_train.to(case.device)
        self.z_0 = self.net(self.x).detach()
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=RATE * self.gamma**2)
        self.count = self.due = 0
        self.interval, self.largest, self.lowest = 1, float("nan"), float("inf")

    def loss(self) -> Tensor:
        f = (self.net(self.x) - self.z_0) / self.gamma
        return (f - self.y).square().sum() / (2 * len(self.x))

    def step(self) -> None:
        self.optimiser.zero_grad()
        self.loss().backward()
        self.optimiser.step()

    def adapt(self) -> None:
        """The same with the trainer's rule: eta = c / lambda_max(K_t / N), refreshed ever more rarely while it is
        steady; a step after which the loss is clearly higher is taken back."""
        if self.count >= self.due:
            points = self.x[:128]
            kernel = empirical_ntk(self.net, points)[:, :, 0, 0]
            largest = float(torch.linalg.eigvalsh(kernel)[-1]) / len(points)
            steady = abs(largest - self.largest) <= 0.1 * self.largest
            self.interval = min(2 * self.interval, LONGEST) if steady else 1
            self.due, self.largest = self.count + self.interval, largest
            self.optimiser.param_groups[0]["lr"] = STEP / largest * self.gamma**2
        self.optimiser.zero_grad()
        loss = self.loss()
        if (value := float(loss.detach())) > self.lowest * (1 + RISE):
            with torch.no_grad():
                for parameter, before in zip(self.net.parameters(), self.before, strict=True):
                    parameter.copy_(before)
            self.optimiser.param_groups[0]["lr"] /= 2
            return
        self.lowest = min(self.lowest, value)
        loss.backward()
        self.before = [parameter.detach().clone() for parameter in self.net.parameters()]
        self.optimiser.step()
        self.count += 1


def loop(case: Case, steps: int, adaptive: bool) -> float:
    nets = [Single(case) for _ in range(case.members)]
    go = [net.adapt if adaptive else net.step for net in nets]
    for _ in range(WARM):
        for step in go:
            step()
    begun = clock(case.device)
    for _ in range(steps):
        for step in go:
            step()
    return (clock(case.device) - begun) / steps


def flops(case: Case) -> int:
    """Of a step of all networks."""
    single = Single(case)
    with FlopCounterMode(display=False) as counter:
        single.loss().backward()
    return case.members * counter.get_total_flops()


def ceiling(device: str) -> float:
    """FLOPs a second of a large product."""
    a = torch.randn(1024, 1024, device=device)
    a @ a
    times = []
    for _ in range(5):
        begun = clock(device)
        a @ a
        times.append(clock(device) - begun)
    return 2 * 1024**3 / min(times)


def measure(case: Case, runs: int, seconds: float) -> dict[str, object]:
    contenders: dict[str, Callable[[int], float]] = {"torch": lambda steps: loop(case, steps, False)}
    contenders["ours"] = lambda steps: ours(case, "auto", steps, False)
    for method in case.engines:
        contenders[method] = lambda steps, method=method: ours(case, method, steps, False)
    if case.adaptive:
        contenders["adaptive torch"] = lambda steps: loop(case, steps, True)
        contenders["adaptive ours"] = lambda steps: ours(case, "auto", steps, True)
    steps = {name: max(6, int(seconds / run(6))) for name, run in contenders.items()}
    for name in steps:
        if name.startswith("adaptive"):
            steps[name] = max(steps[name], 2 * LONGEST)  # the refreshes belong to it
    times: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = []
    for _ in range(runs):
        peaks.append(ceiling(case.device))
        for name, run in contenders.items():
            times[name].append(run(steps[name]))
    work, peak = flops(case), max(peaks)

    def ratio(name: str) -> float:
        base = "adaptive torch" if name.startswith("adaptive") else "torch"
        return statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))

    return {
        "goal": case.goal,
        "flops_a_step": work,
        "ceiling_flops_a_second": peak,
        "seconds_a_step": times,
        "ratio": {name: ratio(name) for name in contenders},
        "of_ceiling": {name: work / statistics.median(values) / peak for name, values in times.items()},
    }


def table(results: dict[str, dict]) -> str:
    rows = [("case", "contender", "ms a step", "ratio", "goal", "of ceiling")]
    for case, result in results.items():
        for name, times in result["seconds_a_step"].items():
            goal = f"{result['goal']:g}" if name == "ours" else ""
            cells = f"{1e3 * statistics.median(times):.4g}", f"{result['ratio'][name]:.3g}", goal
            rows.append((case if name == "torch" else "", name, *cells, f"{result['of_ceiling'][name]:.0%}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of CPU that a contender takes a run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", action="append", choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.case or list(CASES):
        if CASES[name].device == "cuda" and not torch.cuda.is_available():
            print(f"skipped: {name}: torch sees no GPU here", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = measure(CASES[name], options.runs, options.seconds)
    print(table(results))
    if options.json:
        command = "OMP_NUM_THREADS=1 python tests/speed/train_speed.py --json docs/results/train_speed.json"
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        head = {"command": command, "processor": processor(), "gpu": device, "versions": versions()}
        old = json.loads(options.json.read_text())["results"] if options.json.exists() else {}
        options.json.write_text(json.dumps({**head, "results": {**old, **results}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
