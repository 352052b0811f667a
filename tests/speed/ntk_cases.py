"""What is timed: networks, inputs, and how each library computes their kernel. Everything on one thread, in float32."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from bench.ntk import empirical_ntk

JAX_PYTHON = "WIDEBENCH_JAX_PYTHON"
"""Environment variable: the Python of an environment that has neural-tangents."""

Timed = Callable[[], float]
"""Computes the kernel once and says how many CPU seconds that took."""


@dataclass(frozen=True)
class Case:
    """``n`` samples, images of ``size`` pixels a side; ``outputs`` of the network: the full kernel."""

    name: str
    kind: str
    n: int
    outputs: int
    size: int = 16

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        if self.kind == "mlp":
            layers: list[nn.Module] = []
            for a, b in ((784, 512), (512, 512), (512, 512)):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(512, self.outputs))
        layers = []
        for a in (3, 64, 64):
            layers += [nn.Conv2d(a, 64, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, self.outputs))

    def inputs(self) -> Tensor:
        shape = (784,) if self.kind == "mlp" else (3, self.size, self.size)
        return torch.randn(self.n, *shape, generator=torch.Generator().manual_seed(1))


CASES = {
    case.name: case
    for case in (
        Case("mlp, 1 output, N = 32", "mlp", 32, 1),
        Case("mlp, 1 output, N = 500", "mlp", 500, 1),
        Case("mlp, 1 output, N = 1000", "mlp", 1000, 1),
        Case("mlp, 10 outputs, N = 500", "mlp", 500, 10),
        Case("cnn, 1 output, N = 200", "cnn", 200, 1),
        Case("cnn, 10 outputs, N = 100", "cnn", 100, 10),
        Case("cnn 32 x 32, 1 output, N = 50", "cnn", 50, 1, 32),
    )
}


def clocked(work: Callable[[], object]) -> Timed:
    def run() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return run


def ours(case: Case) -> Callable[[], Tensor]:
    net, x = case.network(), case.inputs()

    def kernel() -> Tensor:
        found = empirical_ntk(net, x)
        assert isinstance(found, Tensor)
        return found

    return kernel


def recipe(case: Case, chunk: int) -> Callable[[], Tensor]:
    """Jacobian contraction as in PyTorch's tutorial on neural tangent kernels; x2 is x1: its Jacobian serves twice."""
    net, x = case.network(), case.inputs()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def output(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, params, (sample[None],))[0]

    def kernel() -> Tensor:
        one = case.outputs == 1
        derivative = grad(lambda p, s: output(p, s)[0]) if one else jacrev(output)
        jacobian = vmap(derivative, (None, 0), chunk_size=chunk)(params, x)
        parts = [j.reshape(case.n, case.outputs, -1) for j in jacobian.values()]
        return sum(torch.einsum("nkp,mlp->nmkl", j, j) for j in parts)  # type: ignore[return-value]

    return kernel


def best_recipe(case: Case) -> tuple[str, Callable[[], Tensor]]:
    """With the chunk that is fastest on some samples; with many outputs fewer do."""
    few = Case(case.name, case.kind, 64 if case.outputs == 1 else 16, case.outputs, case.size)
    chunks = (8, 16, 32, 64) if case.outputs == 1 else (2, 4, 8, 16)
    seconds = {chunk: min(clocked(recipe(few, chunk))() for _ in range(2)) for chunk in chunks}
    chunk = min(seconds, key=lambda c: seconds[c])
    return f"torch.func (chunk {chunk})", recipe(case, chunk)


def products(case: Case) -> Callable[[], Tensor]:
    """NTK-vector products as in the same tutorial, one for each column of the kernel."""
    net, x = case.network(), case.inputs()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def column(unit: Tensor) -> Tensor:
        _, pull = torch.func.vjp(lambda p: functional_call(net, p, (x,)), params)
        return torch.func.jvp(lambda p: functional_call(net, p, (x,)), (params,), pull(unit))[1]

    def kernel() -> Tensor:
        n, c = case.n, case.outputs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            columns = vmap(column)(torch.eye(n * c).view(n * c, n, c))
        return columns.view(n, c, n, c).permute(2, 0, 3, 1)

    return kernel


def nngeometry(case: Case) -> Callable[[], Tensor] | None:
    """None: not installed."""
    try:
        from nngeometry.backend import TorchHooksJacobianBackend
    except ImportError:
        return None
    from torch.utils.data import DataLoader, TensorDataset

    net, x = case.network(), case.inputs()

    def kernel() -> Tensor:
        backend = TorchHooksJacobianBackend(net, function=lambda *batch: net(batch[0]))
        loader = DataLoader(TensorDataset(x), batch_size=case.n)
        gram: Tensor = backend.get_gram_matrix(loader)  # [c, n, c, n]
        return gram.permute(1, 3, 0, 2)

    return kernel


class JaxLibrary:
    """neural-tangents in a process of its own, which computes a kernel whenever it is told to."""

    IMPLEMENTATIONS = ("Jacobian contraction", "NTK-vector products", "structured derivatives")

    def __init__(self, case: Case, implementation: int, options: Mapping[str, str] = MappingProxyType({})) -> None:
        """``options``: of the process's environment."""
        self._folder = tempfile.TemporaryDirectory()
        arrays = {f"p{i}": p.detach().numpy() for i, p in enumerate(case.network().parameters())}
        path = Path(self._folder.name) / "case.npz"
        np.savez(path, x=case.inputs().numpy(), kind=case.kind, **arrays)
        one_thread = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
        self._process = subprocess.Popen(
            [os.environ[JAX_PYTHON], str(Path(__file__).with_name("jax_worker.py")), str(path), str(implementation)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **one_thread, **options},
        )  # fmt: skip
        answer = self._ask()
        self.kernel = torch.from_numpy(np.load(answer["kernel"]))
        self.peak_bytes = int(answer["peak_bytes"])

    def _ask(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The JAX process ended.")
        return json.loads(line)

    def __call__(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._ask()["seconds"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def floor(case: Case) -> tuple[str, Callable[[], object]]:
    """The least that any exact method of this kind does.

    MLP: one forward pass, c backward passes to the pre-activations, and half of each layer's two Gram matrices, as
    matrix products alone. CNN: forward, c backward passes with a batch's weight gradients (a sample's own cannot cost
    less), and half the Gram matrix of the per-sample gradients.
    """
    net, x, c = case.network(), case.inputs(), case.outputs
    if case.kind == "mlp":
        sizes = [(784, 512), (512, 512), (512, 512), (512, c)]
        H = [torch.randn(case.n, a) for a, _ in sizes]
        D = [torch.randn(case.n * c, b) for _, b in sizes]
        W = [torch.randn(b, a) for a, b in sizes]

        def products() -> None:
            for h, d, w, layer in zip(H, D, W, range(4), strict=True):
                h @ w.T
                if layer:
                    d @ w
                half = [slice(i, min(i + 125, len(h))) for i in range(0, len(h), 125)]
                for rows in half:
                    h[rows] @ h[rows.start :].T
                for start in range(0, len(d), 125):
                    d[start : start + 125] @ d[start:].T

        return "matrix products", products
    J = torch.randn(case.n * c, sum(p.numel() for p in net.parameters()))

    def passes() -> None:
        for batch in x.split(50):
            output = net(batch)
            for k in range(c):
                output[:, k].sum().backward(retain_graph=k + 1 < c)
        net.zero_grad()
        for start in range(0, len(J), 125):
            J[start : start + 125] @ J[start:].T

    return "forward + backward + Gram", passes


FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Environment in which what is freed leaves the resident set at once; it slows allocation down."""


def peak_bytes(case: Case, which: str) -> int:
    """Of a second call, beyond what inputs, network and code take: in a process of its own, from its resident set."""
    if which.startswith("JAX"):
        library = JaxLibrary(case, 1 + [f"JAX, {name}" for name in JaxLibrary.IMPLEMENTATIONS].index(which), FREED)
        library.close()
        return library.peak_bytes
    code = f"import ntk_cases as c; c.report_peak(c.CASES[{case.name!r}], {which!r})"
    here = Path(__file__).parent
    environment = {**os.environ, **FREED, "PYTHONPATH": f"{here}:{here.parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout.split()[-1])


def report_peak(case: Case, which: str) -> None:
    torch.set_num_threads(1)
    work = {"ours": ours, "torch.func": lambda case: recipe(case, 32), "nngeometry": nngeometry}[which](case)
    work()  # a first call loads code, and compiles kernels for its shapes
    ctypes.CDLL(None).malloc_trim(0)  # what it left to the allocator would not be counted
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    print(_memory("VmHWM") - before)


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
