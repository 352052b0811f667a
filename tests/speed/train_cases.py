"""What ``train_speed.py`` trains: networks of several shapes, each also alone as one would train it by hand."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from bench.ntk import empirical_ntk  # noqa: E402
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
    "4 CNNs, N=100, 16x16, 16 channels, depth 2": Case(4, 100, (3, 16, 16), 16, 2, 0.95),  # of experiment=cnn
    "3 CNNs, N=64, 16x16, 32 channels, depth 3": Case(3, 64, (3, 16, 16), 32, 3, 0.95),
    "cuda: 32 networks, N=256, width 256, depth 2": Case(32, 256, (64,), 256, 2, 20.0, device="cuda"),
}


def clock(device: str) -> float:
    """CPU seconds (the machine may be busy), or seconds where a GPU works."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


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
