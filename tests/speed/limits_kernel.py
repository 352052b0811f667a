"""The Myrtle-like kernel of CIFAR-10 at full size, in blocks on disk: what it costs, beside its floor.

    OMP_NUM_THREADS=1 WIDEBENCH_DATA=folder python tests/speed/limits_kernel.py --file kernel.npy \\
        [--images 1000] [--json docs/results/limits_kernel.json]

conv conv pool conv pool conv, global average, read-out, on 32 x 32 images in float32, NNGP and NTK. The same command
goes on after a kill; beside the file, `<file>.cost.jsonl` keeps what every process has spent, so that the figures are
of all of them. On a CPU by the compiled loops, in CPU seconds; where there is CUDA by Triton, in seconds. Floor: see
test_limits_speed.py (CPU) and test_limits_gpu_speed.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from ntk_cases import _memory as memory  # noqa: E402
from test_limits_speed import floor, myrtle  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.environment import processor  # noqa: E402
from models.limits import infinite_width  # noqa: E402
from models.limits.infinite import Limit  # noqa: E402
from tasks.images import cifar10  # noqa: E402

EVERY = 2.0
"""Seconds between two lines of what a process has spent: what a kill can hide."""
FEW = 4
"""Images whose kernels are computed again by the recursion in float64."""


class Cost:
    """What this process and those killed before it have spent on a file."""

    def __init__(self, path: Path, cuda: bool) -> None:
        self.path, self.cuda = path, cuda
        self.process = f"{platform.node()}:{os.getpid()}:{time.time():.0f}"
        self.start = time.perf_counter()

    def write(self) -> None:
        spent = {
            "process": self.process,
            "cpu_seconds": time.process_time(),
            "seconds": time.perf_counter() - self.start,
            "peak_bytes": memory("VmHWM"),
            "device_peak_bytes": torch.cuda.max_memory_allocated() if self.cuda else None,
        }
        with self.path.open("a") as lines:
            lines.write(json.dumps(spent) + "\n")

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write it again and again, until the work is done."""
        done = threading.Event()

        def run() -> None:
            while not done.wait(EVERY):
                self.write()

        self.write()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.write()

    def total(self) -> dict[str, Any]:
        """The last line of each process, together."""
        lines = self.path.read_text().splitlines()  # each was written at once, so that no kill cuts it
        last = {entry["process"]: entry for entry in map(json.loads, lines)}
        found = list(last.values())
        return {
            "processes": len(found),
            "cpu_seconds": round(sum(entry["cpu_seconds"] for entry in found), 1),
            "seconds": round(sum(entry["seconds"] for entry in found), 1),
            "peak_bytes": max(entry["peak_bytes"] for entry in found),
            "device_peak_bytes": max((entry["device_peak_bytes"] or 0 for entry in found), default=0) or None,
        }


def least(x: Tensor) -> float:
    """Seconds of the floor on this device, measured now."""
    if x.device.type == "cuda":
        import test_limits_gpu_speed as gpu

        return gpu.floor(len(x) * (len(x) + 1) / 2, "cuda")
    return floor("myrtle", x.dtype, x, (len(x), None))


def checked(limit: Any, x: Tensor, found: Limit) -> dict[str, float]:
    """How far a few entries are from the recursion in float64, and what a kernel must be."""
    which = torch.linspace(0, len(x) - 1, min(FEW, len(x))).long()
    few = limit(x[which].double(), engine="torch")
    errors = {}
    for name, ours, exact in (("nngp", found.nngp, few.nngp), ("ntk", found.ntk, few.ntk)):
        part = ours[which.cpu()][:, which.cpu()].double()
        errors[f"{name}_relative_error"] = float(((part - exact.cpu()) / exact.cpu()).abs().max())
        values = torch.linalg.eigvalsh(ours.double())
        errors[f"{name}_least_over_largest_eigenvalue"] = float(values[0] / values[-1])
        if not torch.equal(ours, ours.T):
            raise SystemExit(f"The {name} is not symmetric.")
        if errors[f"{name}_relative_error"] > 1e-4:
            raise SystemExit(f"The {name} differs from the recursion by {errors[f'{name}_relative_error']:.1e}.")
    return errors


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help=".npy file of both kernels; it may exist in part")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args()
    if not 2 <= options.images <= 50_000:
        parser.error(f"--images must be from 2 to 50000, not {options.images}.")
    return options


def main() -> None:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    cuda = torch.cuda.is_available()
    try:
        task = cifar10(classes=None, n_train=options.images, n_test=1)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    x = task.x_train.float().to("cuda" if cuda else "cpu")
    limit = infinite_width(myrtle())
    cost = Cost(options.file.with_name(options.file.name + ".cost.jsonl"), cuda)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    before = memory("VmRSS")
    try:
        with cost.kept():
            found = limit(x, engine="triton" if cuda else "compiled", file=options.file)
            if cuda:
                torch.cuda.synchronize()
    except ValueError as error:  # the file is of another kernel
        print(error, file=sys.stderr)
        sys.exit(2)
    figures = {**cost.total(), "bytes_before": before, "floor_seconds": round(least(x), 1), **checked(limit, x, found)}
    spent = figures["seconds" if cuda else "cpu_seconds"]
    figures["times_floor"] = round(spent / figures["floor_seconds"], 2)
    result = {
        "what": f"symmetric NNGP and NTK of {len(x)} CIFAR-10 images of 32 x 32: conv conv pool conv pool conv, global "
        "average, read-out; float32. Seconds and bytes are of all processes that worked on the file: the peak is of a "
        "whole process, loaded libraries (bytes_before) and the pages of the file included.",
        "command": "OMP_NUM_THREADS=1 WIDEBENCH_DATA=<folder> python tests/speed/limits_kernel.py --file kernel.npy "
        "--json docs/results/limits_kernel.json",
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "engine": "triton" if cuda else "compiled",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numba", "numpy")},
        },
        **figures,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
