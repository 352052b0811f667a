"""The step of many networks without the trainer around it: by an engine, by ``torch.compile``, as a CUDA graph.

All of them take the step of ``Single.step``. They move parameters in place, at addresses that stay: so a CUDA graph,
recorded by hand or by torch, can write to them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.utils import fresh_cache
from torch.func import functional_call, grad, stack_module_state

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from train_cases import RATE, WARM, Case, Single  # noqa: E402

from bench.batch import Batch  # noqa: E402
from bench.engines import engine  # noqa: E402
from bench.losses import Mse  # noqa: E402
from bench.optimisers import Plain  # noqa: E402
from bench.point import Point  # noqa: E402
from bench.train import Trainer  # noqa: E402
from bench.trained import Member  # noqa: E402

Step = Callable[[], object]


class ByEngine:
    """The trainer's own step of one batch, without its look at losses, ends and step sizes."""

    def __init__(self, nets: list[Single]) -> None:
        first, members = nets[0], len(nets)
        self.here = Point.of(stack_module_state([single.net for single in nets])[0])
        self.gradient = self.here.like()
        x, y = (tensor.expand(members, *tensor.shape).contiguous() for tensor in (first.x, first.y))
        z_0 = torch.stack([single.z_0 for single in nets])
        gamma = x.new_full((members,), first.gamma)
        self.batch = Batch(first.net, dict(self.here.views), {}, x, y, z_0, gamma, (0,) * members)
        self.engine, self.loss, self.optimiser = engine(self.batch, "auto"), Mse(), Plain()
        self.rates = torch.full_like(gamma, RATE)
        self.scale = (self.optimiser.weight(gamma, self.rates) / (gamma * len(first.x)))[:, None, None]

    def step(self) -> None:
        f = self.batch.outputs(self.engine.forward(self.batch, self.here))
        self.engine.backward(self.scale * self.loss.gradient(f, self.batch.y), self.gradient)
        self.optimiser.move(self.here, self.here, self.gradient, self.rates, self.rates)


def by_engine(case: Case, nets: list[Single]) -> list[ByEngine]:
    """The batches that the trainer makes of these networks."""
    members = [Member(0, i) for i in range(len(nets))]
    batches = Trainer(device=case.device).batches(case.model(), [case.task()], members)
    return [ByEngine([nets[member.init] for member in batch]) for batch in batches]


def descend(
    net: nn.Module, params: Mapping[str, Tensor], x: Tensor, y: Tensor, z_0: Tensor, gamma: float, apart: bool
) -> None:
    """One step of one network, or (``apart`` False) of several: params and z_0 then have a leading member axis."""

    def z(values: Mapping[str, Tensor]) -> Tensor:
        return functional_call(net, dict(values), (x,))

    def loss(values: Mapping[str, Tensor]) -> Tensor:
        f = ((z if apart else torch.vmap(z))(values) - z_0) / gamma
        return (f - y).square().sum() / (2 * len(x))

    gradients = grad(loss)(params)
    for name, parameter in params.items():
        parameter.sub_(gradients[name], alpha=RATE * gamma**2)


class Functional:
    """The step as one function of tensors, which ``torch.compile`` sees whole: of all networks at once by vmap, or of
    one after another. ``function`` is ``descend``, or what a compiler made of it."""

    def __init__(self, nets: list[Single], apart: bool) -> None:
        self.apart, self.first = apart, nets[0]
        groups = [[single] for single in nets] if apart else [nets]
        self.params, self.z_0 = [], []
        for group in groups:
            stacked = stack_module_state([single.net for single in group])[0]
            values = {name: (value[0] if apart else value).detach().clone() for name, value in stacked.items()}
            # Parameters: of those, and of no other argument, torch.compile knows that their addresses stay.
            self.params.append({name: nn.Parameter(value, requires_grad=False) for name, value in values.items()})
            z_0 = torch.stack([single.z_0 for single in group])
            self.z_0.append(z_0[0] if apart else z_0)
        self.function = descend

    def step(self) -> None:
        first = self.first
        for params, z_0 in zip(self.params, self.z_0, strict=True):
            self.function(first.net, params, first.x, first.y, z_0, first.gamma, self.apart)

    def compile(self, mode: str | None = None) -> dict[str, float]:
        """Returns: seconds of the first step: "new", and "cached": again, with the machine code on disk."""
        seconds = {}
        with fresh_cache(), torch._inductor.config.patch(compile_threads=1):
            torch.compile(torch.sin)(self.first.x)  # torch loads its compiler, which is not counted
            for name in ("new", "cached"):
                torch._dynamo.reset()
                self.function = torch.compile(descend, fullgraph=True, dynamic=False, mode=mode)
                begun = spent(self.first.x.device)
                self.step()
                seconds[name] = spent(self.first.x.device) - begun
        return seconds


def no_compiler() -> str | None:
    """Why torch.compile cannot work here; None: it can."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile finds no C++ compiler"
    return None


def spent(device: torch.device) -> float:
    """CPU seconds of this process and of the compilers that it called, or seconds where a GPU works."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return sum(os.times()[:4])


def captured(step: Step) -> Step:
    """The step as a CUDA graph; it takes ``WARM`` steps at once, for what the first ones allocate must not be recorded,
    and recording itself takes none."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
