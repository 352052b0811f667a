"""Networks for tests of launchers, by width: copied beside a sweep as ``mine.py``, as a user's own model would be."""

import os
import signal
import time
from pathlib import Path

import torch

from models.mlp import mlp

DIES, DIES_ONCE, RAISES = 13, 14, 17
STEPS = 20  # forward passes until then


class Mortal(torch.nn.Module):
    """Ends its process, or raises, in the middle of training; slow while there is a file ``slow``."""

    def __init__(self, net: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.net = net
        self.width = width
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if Path("slow").exists():
            time.sleep(0.05)
        if self.calls > STEPS:
            once = self.width == DIES_ONCE and not Path("died").exists()
            if self.width == DIES or once:
                Path("died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.width == RAISES:
                raise RuntimeError("what a model may do")
        return self.net(x)


def network(in_features: int, out_features: int, width: int, depth: int, **_: object) -> torch.nn.Module:
    return Mortal(mlp(in_features, width, depth, out_features), width)
