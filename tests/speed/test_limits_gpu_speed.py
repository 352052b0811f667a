"""The Myrtle-5-like kernel of 1,000 images of 32 x 32 on a GPU: its time, its ratios to a floor and to the recursion.

    python -m pytest tests/speed/test_limits_gpu_speed.py -m "speed and gpu" -s

Floor: the roots and the division of each covariance and layer, at the rate that the GPU computes them in registers,
and the sums of pooling windows written and read once, at the rate that it copies; both measured in the same run.
"""

import sys
import time
from collections.abc import Callable

import pytest
import torch
from test_limits_speed import ENTRIES, myrtle
from torch import Tensor

from models.limits import infinite_width

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = [
    pytest.mark.speed,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
SIZE = 32
REPEATS = 64  # roots one after the other, in registers
# Sums of the four phases after either pooling, of both kernels, that one pair writes and reads.
SUMS = 2 * 2 * 4 * ((SIZE // 2) ** 4 + (SIZE // 4) ** 4)


@triton.jit
def roots(source, target, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    """What a covariance needs in a layer, two roots and a division, again and again."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(source + at)
    for _ in range(REPEATS):
        z = tl.sqrt(1 - tl.sqrt(z) / (1 + z))
    tl.store(target + at, z)


def seconds(call: Callable[[], object], device: str, repeats: int = 3) -> float:
    """Of the fastest of some calls after one that compiles."""
    found = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def floor(pairs: float, device: str, count: int = 2**22) -> float:
    """Seconds for so many pairs."""
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    run = lambda: roots[(count // 1024,)](source, target, REPEATS=REPEATS, BLOCK=1024)  # noqa: E731
    entry = seconds(run, device) / (count * REPEATS)
    byte = seconds(lambda: target.copy_(source), device) / (2 * source.nbytes)
    return pairs * (ENTRIES["myrtle"] * entry + SUMS * source.element_size() * byte)


def measured(x: Tensor, few: int) -> dict[str, float]:
    """Seconds: of the whole kernel, of its floor, and of the recursion at the rate of its first `few` rows."""
    limit, device, pairs = infinite_width(myrtle()), x.device.type, len(x) * (len(x) + 1) / 2
    limit(x[:few], engine="triton")
    return {
        "triton": seconds(lambda: limit(x, engine="triton"), device, 1),
        "torch": seconds(lambda: limit(x[:few], engine="torch"), device, 1) * pairs / (few * (few + 1) / 2),
        "floor": floor(pairs, device),
    }


def test_myrtle_on_a_gpu(capsys) -> None:
    found = measured(torch.randn(1000, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).cuda(), 24)
    with capsys.disabled():
        sys.stdout.write(
            f"\nmyrtle, 1000 x 1000, float32, on {torch.cuda.get_device_name()}: {found['triton']:.3g} s, "
            f"{found['triton'] / found['floor']:.3g} times the floor of {found['floor']:.3g} s; the recursion "
            f"{found['torch']:.3g} s, {found['torch'] / found['triton']:.3g} times as long\n"
        )
    assert found["triton"] < found["torch"]
