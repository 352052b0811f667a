"""Training many networks: CPU seconds a step beside a Python loop over single networks with torch.optim.SGD.

    OMP_NUM_THREADS=1 python tests/speed/train_speed.py [--runs 5] [--json docs/results/train_speed.json] [--case NAME]

One thread, all contenders interleaved in one process; "ratio" is the median over the runs of torch / contender. "of
ceiling": FLOPs (torch's own count of a forward and backward pass) a second, over those of a 1,024 x 1,024 product in
the same run. A case "cuda: ..." runs where there is a GPU, on its clock. The contenders:

    torch             the loop
    ours              what the trainer does by itself; "vmap" and "loop": its engines by name
    step alone        the trainer's step without its look at losses and ends: what the next ones are to be compared with
    compiled          that step as a function of torch.compile, of all networks by vmap; on a GPU also with the mode
                      reduce-overhead, which makes a CUDA graph
    compiled loop     the same of one network, over all of them
    CUDA graph        "step alone", recorded by hand
    adaptive ...      the step rule ``c / lambda_max(K_t / N)``, beside a loop that refreshes, checks and steps back

"compile s": CPU seconds until torch.compile has a step, new and with the machine code cached on disk, without those
in which torch loads its compiler; "pays after": the steps that make up for them against "step alone".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from ntk_speed import processor, versions  # noqa: E402
from train_cases import CASES, LONGEST, RATE, STEP, WARM, Case, Single, clock  # noqa: E402
from train_compiled import Functional, Step, by_engine, captured, no_compiler  # noqa: E402

from bench.train import Trainer  # noqa: E402
from bench.trained import Member  # noqa: E402


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


def timed(work: list[Step], device: str, steps: int) -> float:
    """Seconds of one step of all networks, whose steps are these."""
    for _ in range(WARM):
        for step in work:
            step()
    begun = clock(device)
    for _ in range(steps):
        for step in work:
            step()
    return (clock(device) - begun) / steps


def loop(case: Case, steps: int, adaptive: bool) -> float:
    nets = [Single(case) for _ in range(case.members)]
    return timed([net.adapt if adaptive else net.step for net in nets], case.device, steps)


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


def bare(case: Case) -> tuple[dict[str, list[Step]], dict[str, dict[str, float]]]:
    """The contenders without a trainer around them; and the seconds that compiling them took."""
    nets = [Single(case) for _ in range(case.members)]
    found: dict[str, list[Step]] = {"step alone": [batch.step for batch in by_engine(case, nets)]}
    modes: dict[str, str | None] = {"compiled": None, "compiled loop": None}
    if case.device == "cuda":
        found["CUDA graph"] = [captured(batch.step) for batch in by_engine(case, nets)]
        modes["compiled, reduce-overhead"] = "reduce-overhead"
    if (reason := no_compiler()) is not None:
        print(f"left out: {', '.join(modes)}: {reason}", file=sys.stderr)
        modes = {}
    seconds = {}
    for name, mode in modes.items():
        function = Functional(nets, apart=name == "compiled loop")
        seconds[name] = function.compile(mode)
        found[name] = [function.step]
    return found, seconds


def contenders(case: Case) -> tuple[dict[str, Callable[[int], float]], dict[str, dict[str, float]]]:
    """Name -> so many steps -> seconds of one; and the seconds of compiling."""
    found: dict[str, Callable[[int], float]] = {"torch": lambda steps: loop(case, steps, False)}
    for name, method in {"ours": "auto", **{method: method for method in case.engines}}.items():
        found[name] = lambda steps, method=method: ours(case, method, steps, False)
    work, seconds = bare(case)
    for name, steps_of_all in work.items():
        found[name] = lambda steps, steps_of_all=steps_of_all: timed(steps_of_all, case.device, steps)
    if case.adaptive:
        found["adaptive torch"] = lambda steps: loop(case, steps, True)
        found["adaptive ours"] = lambda steps: ours(case, "auto", steps, True)
    return found, seconds


def measure(case: Case, runs: int, seconds: float) -> dict[str, object]:
    work, compile_seconds = contenders(case)
    steps = {name: max(6, int(seconds / run(6))) for name, run in work.items()}
    for name in steps:
        if name.startswith("adaptive"):
            steps[name] = max(steps[name], 2 * LONGEST)  # the refreshes belong to it
    times: dict[str, list[float]] = {name: [] for name in work}
    peaks = []
    for _ in range(runs):
        peaks.append(ceiling(case.device))
        for name, run in work.items():
            times[name].append(run(steps[name]))
    count, peak = flops(case), max(peaks)
    step = {name: statistics.median(values) for name, values in times.items()}

    def ratio(name: str) -> float:
        base = "adaptive torch" if name.startswith("adaptive") else "torch"
        return statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))

    def pays_after(name: str, spent: float) -> int | None:
        """None: never."""
        saved = step["step alone"] - step[name]
        return math.ceil(spent / saved) if saved > 0 else None

    return {
        "goal": case.goal,
        "flops_a_step": count,
        "ceiling_flops_a_second": peak,
        "seconds_a_step": times,
        "ratio": {name: ratio(name) for name in work},
        "of_ceiling": {name: count / value / peak for name, value in step.items()},
        "compile_seconds": compile_seconds,
        "pays_after_steps": {
            name: {which: pays_after(name, spent) for which, spent in found.items()}
            for name, found in compile_seconds.items()
        },
    }


def table(results: dict[str, dict]) -> str:
    rows = [("case", "contender", "ms a step", "ratio", "goal", "of ceiling", "compile s", "pays after")]
    for case, result in results.items():
        for name, times in result["seconds_a_step"].items():
            goal = f"{result['goal']:g}" if name == "ours" else ""
            cells = f"{1e3 * statistics.median(times):.4g}", f"{result['ratio'][name]:.3g}", goal
            spent = [f"{value:.2g}" for value in result["compile_seconds"].get(name, {}).values()]
            after = ["never" if n is None else f"{n:,}" for n in result["pays_after_steps"].get(name, {}).values()]
            compiling = " / ".join(spent), " / ".join(after)
            rows.append(
                (case if name == "torch" else "", name, *cells, f"{result['of_ceiling'][name]:.0%}", *compiling)
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def circumstances() -> dict[str, object]:
    """Of a measurement: CPU seconds, too, are longer on a busy machine, whose caches are shared."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "bench", "models", "tests/speed")
    return {
        "command": " ".join(["OMP_NUM_THREADS=1 python tests/speed/train_speed.py", *map(shlex.quote, sys.argv[1:])]),
        "commit": git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else ""),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "load_average": os.getloadavg(),
        "cores": os.cpu_count(),
    }


def write(path: Path, results: dict[str, dict]) -> None:
    """Beside the results that are there of other cases."""
    old = json.loads(path.read_text())["results"] if path.exists() else {}
    known = {name: {**old, **results}[name] for name in CASES if name in {**old, **results}}
    missing = {
        name: "no GPU" if case.device == "cuda" and not torch.cuda.is_available() else "not run"
        for name, case in CASES.items()
        if name not in known
    }
    path.write_text(json.dumps({"not_measured": missing, "results": known}, indent=1) + "\n")


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
        results[name] = {**circumstances(), **measure(CASES[name], options.runs, options.seconds)}
    print(table(results))
    if options.json:
        write(options.json, results)


if __name__ == "__main__":
    main()
