"""Where and at what cost a cell ran: ``environment.json``."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from bench import workers
from bench.networks import weight_layers
from bench.plan import CONF
from bench.studies.cell import Cell


def process_name() -> str:
    return f"{platform.node()}:{os.getpid()}"


@functools.cache
def _git(*arguments: str) -> str:
    """What git says of this checkout, asked once a process; empty where there is none."""
    done = subprocess.run(["git", "-C", str(CONF), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def environment(
    device: torch.device, flops: int | None, split: dict[str, float], wall: float, trained_all: bool = True
) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "processor": processor(),
        "wall_seconds": wall,
        "cpu_seconds": sum(split.values()),
        "split": split,
        "trained_all": trained_all,
        "process": process_name(),
        "process_seconds": time.process_time(),
        "server": os.environ.get(workers.SERVER, ""),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "flops_per_step": flops,
    }


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        names = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return next(names).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def flops_per_step(cell: Cell) -> int:
    """Of one member, its matrix products: a forward pass over the training set, and twice that for the way back."""
    flops = 0

    def count(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal flops
        weight = layer.get_parameter("weight")
        flops += 2 * weight.numel() * output[0].numel() // weight.shape[0]

    handles = [layer.register_forward_hook(count) for layer in weight_layers(cell.model)]
    with torch.no_grad():
        cell.model(cell.tasks[0].x_train[:1].float())
    for handle in handles:
        handle.remove()
    return 3 * cell.tasks[0].n_train * flops
