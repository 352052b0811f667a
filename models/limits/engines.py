"""Which engine computes a kernel: the plain recursion for every network, or compiled loops and kernels for chains."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.limits.chain import find_chain
from models.limits.compiled import Compiled
from models.limits.dense import CompiledDense, find_dense
from models.limits.trace import Program

Engine = Literal["auto", "torch", "compiled", "triton"]
ENGINES = ("auto", "torch", "compiled", "triton")
LARGE = 2**24  # covariances from which loading (and once compiling) the loops pays
CAPABILITY = (8, 0)  # of a GPU whose tensor cores take float32
LARGEST = {torch.float32: 64, torch.float64: 32}  # pixels a side whose tile fits into a GPU's registers


class Fast(Protocol):
    """One call of a limit by compiled code."""

    name: str

    def tile(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """NNGP and NTK [rows, cols]."""

    def bytes_per_pair(self) -> float:
        """Memory that an entry of a tile takes."""

    def bytes_per_image(self) -> float:
        """Memory that a row or column of a tile takes."""


def fast_engine(
    program: Program, x1: Tensor, x2: Tensor | None, engine: Engine, work: int, memory: int | None
) -> Fast | None:
    """What computes kernels of these inputs faster than the recursion; None for that, where it must or may.

    `work`: covariances to compute. Raises ValueError for a forced engine that does not know the network or the device.
    """
    if engine == "torch" or (engine == "auto" and work < LARGE):
        return None
    if engine == "auto":
        engine = "triton" if x1.device.type == "cuda" and _has_triton(x1.device) else "compiled"
        return _fast(program, x1, x2, engine, memory) if x1.device.type in ("cpu", "cuda") else None
    _check_device(engine, x1.device)
    found = _fast(program, x1, x2, engine, memory)
    if found is None:
        also = (
            ", and chains of linear layers" if engine == "compiled" else " of at most 64 pixels a side, in float64 32"
        )
        raise ValueError(
            f"engine={engine!r} knows chains of convolutions of stride 1, average pooling and one read-out on square "
            f"images{also}, with activations that bend at 0 only, in float32 or float64: use engine='torch'."
        )
    return found


def _fast(program: Program, x1: Tensor, x2: Tensor | None, engine: Engine, memory: int | None) -> Fast | None:
    if x1.dtype not in LARGEST or (engine == "compiled" and x1.device.type != "cpu"):
        return None
    left = _features(program, x1)
    right = None if x2 is None else _features(program, x2)
    chain = find_chain(program, left[:1])
    if engine == "triton":
        if chain is None or chain.stages[0].size > LARGEST[x1.dtype]:
            return None
        from models.limits.triton_chain import TritonChain

        return TritonChain(chain, left, right, memory)
    if chain is not None:
        return Compiled(chain, left, right)
    layers = find_dense(program) if left.ndim == 2 else None
    return None if layers is None else CompiledDense(layers, left, right)


def _features(program: Program, x: Tensor) -> Tensor:
    """What enters the first layer; of a network with several such inputs, one of them."""
    return next(iter(program.run_features(x).values()))


def _has_triton(device: torch.device) -> bool:
    """Whether Triton is there, knows the GPU, and finds the C compiler that it needs to launch a kernel."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return (
        find_spec("triton") is not None
        and compiler is not None
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )


def _check_device(engine: Engine, device: torch.device) -> None:
    if engine == "compiled" and device.type != "cpu":
        raise ValueError(f"engine='compiled' runs on a CPU, not on {device}: use engine='triton' or 'torch'.")
    if engine == "triton" and find_spec("triton") is None:
        raise ValueError("engine='triton' needs the package triton, which comes with torch for CUDA on Linux.")
    if engine == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"engine='triton' runs on CUDA, not on {device}, except in Triton's interpreter (TRITON_INTERPRET=1 in the "
            "environment): use engine='compiled' or 'torch'."
        )
