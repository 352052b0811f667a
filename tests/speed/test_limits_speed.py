"""Speed of infinite-width kernels as ratios of CPU time, on the same inputs and one thread. The table:

    OMP_NUM_THREADS=1 python -m pytest tests/speed/test_limits_speed.py -m speed -s

Against a straightforward PyTorch recursion (full matrices, conv2d over pixel pairs), and, where the variable
WIDEBENCH_JAX_PYTHON names the Python of an environment with the JAX library (see jax_limits.py), against that in the
faster of its two precisions. Floor: the time of the Gram matrix (dense) or of the arc cosines and roots that no
algorithm can avoid, at the rate that this machine shows in the same run.
"""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cnn import cnn
from models.layers import Conv2d, Linear
from models.limits import infinite_width
from models.mlp import mlp

pytestmark = pytest.mark.speed
SCALES = {"w_std": 2**0.5, "b_std": 0.3}


def myrtle() -> nn.Module:
    def block(channels: int) -> list[nn.Module]:
        return [Conv2d(channels, 8, 3, padding=1, **SCALES), nn.ReLU()]

    layers = [*block(3), *block(8), nn.AvgPool2d(2), *block(8), nn.AvgPool2d(2), *block(8), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), Linear(8, 1))


NETS = {
    "dense": lambda: mlp(784, 8, 3, 1, b_std=0.3),
    "flatten": lambda: cnn(3, 8, 3, 1, "relu", "flatten", 32, b_std=0.3),
    "gap": lambda: cnn(3, 8, 3, 1, "relu", "gap", b_std=0.3),
    "myrtle": myrtle,
}
# arc cosines and roots of one pair and one kernel, in entries
ENTRIES = {"dense": 3.0, "flatten": 3 * 32**2, "gap": 3 * 32**4, "myrtle": 2 * 32**4 + 16**4 + 8**4}
SHAPES = {"dense": (4000, None), "flatten": (64, 64), "gap": (4, 16), "myrtle": (4, 16)}
# Goals of the ratios to the JAX library, of the torch and the compiled engine.
GOALS: dict[tuple[str, str], tuple[float | None, float]] = {
    ("dense", "float32"): (None, 3.0),
    ("dense", "float64"): (None, 2.0),
    ("flatten", "float32"): (None, 4.0),
    ("gap", "float32"): (8.0, 25.0),
    ("myrtle", "float32"): (3.0, 25.0),
}


def inputs(case: str, dtype: torch.dtype, pairs: tuple[int, int | None]) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shape = (784,) if case == "dense" else (3, 32, 32)
    n1, n2 = pairs
    x1 = torch.randn(n1, *shape, generator=generator).to(dtype)
    return x1, None if n2 is None else torch.randn(n2, *shape, generator=generator).to(dtype)


def best(call, repeats: int = 3) -> float:
    """CPU seconds, which other processes do not stretch as much, after one call that compiles."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def count(pairs: tuple[int, int | None]) -> int:
    return pairs[0] * (pairs[0] if pairs[1] is None else pairs[1])


def straightforward(case: str, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes first: whole matrices, convolutions by conv2d on either side, one layer after the other."""
    if case == "dense":
        return _dense(x1, x2)
    if case == "flatten":
        return _equal_pixels(x1, x2)
    pairs = [torch.stack([_image(case, a, b) for b in x2]) for a in x1]
    found = torch.stack(pairs)
    return found[..., 0], found[..., 1]


def _activation(K: Tensor, T: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    norms = (q1 * q2).sqrt()
    theta = torch.arccos((K / norms).clamp(-1, 1))
    share = (math.pi - theta) / (2 * math.pi)
    return norms * torch.sin(theta) / (2 * math.pi) + share * K, share * T


def _dense(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    def affine(K: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * K + 0.09, 2 * T + 2 * K + 0.09

    K = x1 @ x2.T / x1.shape[1]
    T = torch.zeros_like(K)
    q1, q2 = ((x * x).mean(1) for x in (x1, x2))
    for _ in range(3):
        K, T = affine(K, T)
        q1, q2 = 2 * q1 + 0.09, 2 * q2 + 0.09
        K, T = _activation(K, T, q1[:, None], q2[None])
        q1, q2 = q1 / 2, q2 / 2
    return K, T + K


def _equal_pixels(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """Only the covariances at equal pixels, [n1 * n2, 1, H, W]: convolutions are conv2d with a kernel of ones."""
    n1, n2, S = len(x1), len(x2), x1.shape[-1]
    ones = torch.ones(1, 1, 3, 3, dtype=x1.dtype) / 9
    K = torch.einsum("nchw,mchw->nmhw", x1, x2).reshape(n1 * n2, 1, S, S) / x1.shape[1]
    T = torch.zeros_like(K)
    q1, q2 = ((x * x).mean(1, keepdim=True) for x in (x1, x2))
    for _ in range(3):
        K, T = (functional.conv2d(k, ones, padding=1) for k in (K, T))
        K, T = 2 * K + 0.09, 2 * T + 2 * K + 0.09
        q1, q2 = (2 * functional.conv2d(q, ones, padding=1) + 0.09 for q in (q1, q2))
        K, T = _activation(K, T, q1.repeat_interleave(n2, 0), q2.repeat(n1, 1, 1, 1))
        q1, q2 = q1 / 2, q2 / 2
    K, T = (k.mean((1, 2, 3)).reshape(n1, n2) for k in (K, T))
    return K, T + K


def _image(case: str, x: Tensor, y: Tensor) -> Tensor:
    """A pair: K(x, x), K(x, y) and K(y, y) together, [3, H, W, H, W]."""
    both = torch.stack([x, x, y]), torch.stack([x, y, y])
    K = torch.einsum("bchw,bcij->bhwij", *both) / len(x)
    T = torch.zeros_like(K)

    def box(K: Tensor) -> Tensor:
        # K[p + o, q + o] for the nine offsets o.
        S = K.shape[1]
        padded = functional.pad(K, (1, 1, 1, 1, 1, 1, 1, 1))
        return sum(padded[:, a : a + S, b : b + S, a : a + S, b : b + S] for a in range(3) for b in range(3)) / 9

    def conv_relu(K: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        K, T = box(K), box(T)
        K, T = 2 * K + 0.09, 2 * T + 2 * K + 0.09
        q = torch.einsum("bhwhw->bhw", K)
        left, right = q[[0, 0, 2]][..., None, None], q[[0, 2, 2]][:, None, None]
        return _activation(K, T, left, right)

    def pool(K: Tensor) -> Tensor:
        s = K.shape[1] // 2
        return K.reshape(3, s, 2, s, 2, s, 2, s, 2).mean((2, 4, 6, 8))

    for number, stage in enumerate((3,) if case == "gap" else (2, 1, 1)):
        if number > 0:
            K, T = pool(K), pool(T)
        for _ in range(stage):
            K, T = conv_relu(K, T)
    K, T = K[1].mean(), T[1].mean()
    return torch.stack([K, T + K])


def jax(case: str, dtype: str, x1: Tensor, x2: Tensor | None, folder: Path) -> tuple[float, np.ndarray] | None:
    """CPU seconds and NTK of the JAX library, None where it is not named."""
    python = os.environ.get("WIDEBENCH_JAX_PYTHON")
    if not python:
        return None
    arrays = {"x1": x1.numpy(), **({} if x2 is None else {"x2": x2.numpy()})}
    np.savez(folder / "inputs.npz", **arrays)
    script = Path(__file__).with_name("jax_limits.py")
    names = [str(folder / "inputs.npz"), str(folder / "outputs.npz")]
    subprocess.run([python, str(script), *names, case, dtype], check=True, capture_output=True, timeout=500)
    outputs = np.load(folder / "outputs.npz")
    return float(outputs["seconds"]), outputs["ntk"]


def floor(case: str, dtype: torch.dtype, x1: Tensor, pairs: tuple[int, int | None]) -> float:
    """Seconds: half a Gram matrix if dense; an arc cosine's polynomial and two roots an entry, at this run's rate."""
    z = torch.rand(2**20, dtype=dtype)
    root = best(lambda: torch.sqrt(z)) / len(z)
    multiply = best(lambda: z * z) / len(z)  # bound by memory: more than eight multiply-adds in registers
    entries = count(pairs) * ENTRIES[case] / (2 if pairs[1] is None else 1)
    gram = best(lambda: x1[:1000] @ x1.T) * len(x1) / 2000 if case == "dense" else 0.0
    return gram + entries * (2 * root + multiply)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", NETS)
def test_speed(case, dtype, tmp_path, capsys) -> None:
    kind = getattr(torch, dtype)
    limit = infinite_width(NETS[case]())
    pairs = SHAPES[case]
    x1, x2 = inputs(case, kind, pairs)
    compiled = best(lambda: limit(x1, x2, engine="compiled")) / count(pairs)
    small = (x1, x2) if case in ("dense", "flatten") else (x1[:2], x2[:6])
    number = count(pairs) if case in ("dense", "flatten") else 12
    plain = best(lambda: limit(*small, engine="torch")) / number
    few = {"dense": (x1[:1000], x1[:1000]), "flatten": (x1, x2)}.get(case) or (x1[:1], x2[:1])
    naive_count = len(few[0]) * len(few[1])
    naive = best(lambda: straightforward(case, *few), 1) / naive_count
    # The three agree.
    reference = straightforward(case, *few)[1]
    found = limit(*few, engine="compiled").ntk
    off = reference.new_ones(reference.shape, dtype=torch.bool)
    if case == "dense":
        off.fill_diagonal_(False)
    torch.testing.assert_close(found[off], reference[off], rtol=1e-3 if dtype == "float32" else 1e-8, atol=0)
    theirs, seconds = {}, None
    for precision in ("float32", "float64") if case != "dense" else (dtype,):
        j1, j2 = (x1, x2) if case in ("dense", "flatten") else (x1[:1], x2[:1])
        result = jax(case, precision, j1, j2, tmp_path)
        if result is not None:
            theirs[precision] = result[0] / count((len(j1), None if j2 is None else len(j2)))
            ours = limit(j1, j2, engine="compiled").ntk.double()
            if precision == dtype == "float64":
                error = (ours - torch.from_numpy(result[1].astype(np.float64))).abs() / ours
                assert error.max() < 1e-6  # their own error where inputs agree
    seconds = min(theirs.values()) if theirs else None
    least = floor(case, kind, x1, pairs) / count(pairs)
    with capsys.disabled():
        line = (
            f"\n{case:8s} {dtype}: compiled {compiled * 1e3:.3g} ms a pair, torch {plain * 1e3:.3g}, straightforward "
            f"{naive * 1e3:.3g}, floor {least * 1e3:.3g} (compiled / floor {compiled / least:.2g}); against "
            f"straightforward {naive / compiled:.3g}x, torch {naive / plain:.3g}x"
        )
        if seconds is not None:
            line += f"; JAX library {seconds * 1e3:.3g} ms: compiled {seconds / compiled:.3g}x, "
            line += f"torch {seconds / plain:.3g}x"
        sys.stdout.write(line + "\n")
    assert naive > compiled
    if seconds is not None:
        for goal, ours in zip(GOALS.get((case, dtype), ()), (plain, compiled), strict=False):
            assert goal is None or seconds / ours > goal
