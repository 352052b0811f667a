"""Times the empirical NTK beside its peers and beside its floor, interleaved, and prints one table.

    OMP_NUM_THREADS=1 python tests/speed/ntk_speed.py [--runs 7] [--json docs/results/ntk_speed.json] [--case NAME ...]

CPU seconds of one thread, medians. Peers: PyTorch's ``torch.func`` recipe with its best chunk; nngeometry where it is
installed; neural-tangents where WIDEBENCH_JAX_PYTHON names the Python of an environment that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import ntk_cases  # noqa: E402
import torch  # noqa: E402
from ntk_cases import CASES, JAX_PYTHON, Case, JaxLibrary, Timed, clocked  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.ntk import empirical_ntk  # noqa: E402

PATIENCE = 12.0
"""CPU seconds after which a contender is run no more."""
ROOM = 5e9
"""Bytes of a Jacobian above which contenders that hold all of it are left out."""
RIGHT = 1e-5
"""Error in float32, relative to the largest entry."""
FEW = 50
"""Columns of a kernel above which NTK-vector products take minutes."""


def contenders(case: Case) -> tuple[dict[str, Timed], list[JaxLibrary]]:
    """Checks each against ours before it is timed."""
    expected = ntk_cases.ours(case)()
    kernels = {}
    jacobian = 4 * case.n * case.outputs * sum(p.numel() for p in case.network().parameters())
    if jacobian < ROOM:
        name, work = ntk_cases.best_recipe(case)
        kernels[name] = work
    if (work := ntk_cases.nngeometry(case)) is not None:
        kernels["nngeometry"] = work
    if case.n * case.outputs <= FEW:
        kernels["torch.func products"] = ntk_cases.products(case)
    timed: dict[str, Timed] = {"ours": clocked(ntk_cases.ours(case))}
    for name, work in kernels.items():
        few = Case(case.name, case.kind, 16, case.outputs, case.size)
        small = {"nngeometry": ntk_cases.nngeometry, "torch.func products": ntk_cases.products}.get(name)
        reference = ntk_cases.recipe(few, 16) if small is None else small(few)
        assert reference is not None
        _agree(name, reference(), ntk_cases.ours(few)())
        timed[name] = clocked(work)
    processes = []
    for i, name in enumerate(JaxLibrary.IMPLEMENTATIONS if os.environ.get(JAX_PYTHON) else ()):
        if (i == 0 and jacobian >= ROOM) or (i == 1 and case.n * case.outputs > FEW):
            continue
        process = JaxLibrary(case, i + 1)
        processes.append(process)
        if (error := _error(process.kernel.view(expected.shape), expected)) < RIGHT:
            timed[f"JAX, {name}"] = process
        else:  # its sum over all parameters, one after another in float32
            print(f"left out: JAX, {name}, whose kernel has an error of {error:.2g}", file=sys.stderr)
    name, floor = ntk_cases.floor(case)
    timed[f"floor: {name}"] = clocked(floor)
    return timed, processes


def _agree(name: str, kernel: Tensor, expected: Tensor) -> None:
    error = _error(kernel, expected)
    if not error < RIGHT:
        raise SystemExit(f"{name} computes another kernel: its error is {error:.2g}.")


def _error(kernel: Tensor, expected: Tensor) -> float:
    """The median over the entries: a ReLU mask that flips in float32 moves all entries of its sample."""
    return float((kernel - expected).abs().median() / expected.abs().max())


def measure(case: Case, runs: int) -> dict[str, list[float]]:
    """Contender -> CPU seconds of its runs, interleaved; ours first, the floor last."""
    timed, processes = contenders(case)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    try:
        timed["ours"]()  # the first call allocates
        for _ in range(runs):
            for name, run in timed.items():
                if sum(seconds[name]) < PATIENCE:
                    seconds[name].append(run())
    finally:
        for process in processes:
            process.close()
    return seconds


def ensemble(runs: int) -> dict[str, list[float]]:
    """Eight members in one call, and in eight."""
    seconds: dict[str, list[float]] = {"ours": [], "eight calls": []}
    case = CASES["mlp, 1 output, N = 500"]
    net, x = case.network(), case.inputs()
    params = {name: torch.stack([p.detach() * (1 + 0.1 * i) for i in range(8)]) for name, p in net.named_parameters()}
    singles = [{name: p[i : i + 1] for name, p in params.items()} for i in range(8)]
    together = clocked(lambda: empirical_ntk(net, x, params=params))
    apart = clocked(lambda: [empirical_ntk(net, x, params=single) for single in singles])
    together(), apart()
    for _ in range(runs):
        seconds["ours"].append(together())
        seconds["eight calls"].append(apart())
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """How many times longer each takes than ours: the median of the ratios of neighbouring runs."""
    ours = seconds["ours"]
    return {
        name: statistics.median(other / own for other, own in zip(times, ours, strict=False))
        for name, times in seconds.items()
    }


def measured_in_memory(seconds: dict[str, list[float]]) -> list[str]:
    """All but floors, and torch.func's products, which keep all columns' batches: gigabytes."""
    names = [who.split(" (")[0] for who in seconds]
    return [who for who in names if who != "torch.func products" and not who.startswith("floor")]


def table(results: dict[str, dict]) -> str:
    rows = [("case", "contender", "seconds", "runs", "times ours", "peak MB")]
    for case, result in results.items():
        for name, times in result["seconds"].items():
            peak = result["peak_bytes"].get(name.split(" (")[0])
            cells = f"{statistics.median(times):.4g}", str(len(times)), f"{result['ratios'][name]:.3g}"
            rows.append((case if name == "ours" else "", name, *cells, "" if peak is None else f"{peak / 1e6:.1f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "nngeometry"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    if os.environ.get(JAX_PYTHON):
        code = "from importlib.metadata import version; print(version('neural-tangents'), version('jax'))"
        answer = subprocess.run([os.environ[JAX_PYTHON], "-c", code], capture_output=True, text=True, check=True)
        found["neural-tangents"], found["jax"] = answer.stdout.split()
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, one thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", action="append", choices=[*CASES, "ensemble"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.case or [*CASES, "ensemble"]:
        print(f"{name} ...", file=sys.stderr, flush=True)
        seconds = ensemble(options.runs) if name == "ensemble" else measure(CASES[name], options.runs)
        peaks = {}
        if name != "ensemble":
            peaks = {which: ntk_cases.peak_bytes(CASES[name], which) for which in measured_in_memory(seconds)}
        results[name] = {"seconds": seconds, "ratios": ratios(seconds), "peak_bytes": peaks}
    print(table(results))
    if options.json:
        command = "OMP_NUM_THREADS=1 python tests/speed/ntk_speed.py --json docs/results/ntk_speed.json"
        head = {"command": command, "processor": processor(), "versions": versions()}
        old = json.loads(options.json.read_text())["results"] if options.json.exists() else {}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**head, "results": {**old, **results}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
