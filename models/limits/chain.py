"""Finds out whether a network is a chain that the compiled loops know: convolutions, activations, pooling, read-out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from models.limits.graph import Step
from models.limits.positions import Window
from models.limits.state import Kernels
from models.limits.structural import affine
from models.limits.tiles import BENT, STRAIGHT
from models.limits.trace import Program

_POINT = Window(1)


@dataclass(frozen=True)
class Layer:
    """K <- w box(K) + b, T <- w box(T) + ws box(K) + bs, with sums over `window` along both axes; then an activation.

    `dual` is its rule, `kind` what the loops know it by. BENT: with slopes `right` and `left` of 0.
    """

    w: float
    b: float
    ws: float
    bs: float
    window: Window = _POINT
    kind: int = STRAIGHT
    right: float = 1.0
    left: float = 1.0
    dual: Callable[[Kernels], Kernels] | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """Of the layer, then of the activation: the square of its bend, the product of its slopes, and the product of
        derivatives where one and where both sides are exactly 0: there autograd takes the slope on the left."""
        layer = self.w, self.b, self.ws, self.bs
        mean = (self.right + self.left) / 2
        return *layer, (self.right - self.left) ** 2, self.right * self.left, self.left * mean, self.left**2

    @property
    def wraps(self) -> bool:
        """Whether the image is padded with its other end."""
        return self.window.mode == "circular"


NOTHING = Layer(1.0, 0.0, 0.0, 0.0)


@dataclass
class Stage:
    """Layers without a change of resolution, then sums over windows of `pool` pixels a side, times `scale`."""

    size: int  # pixels a side that enter
    layers: list[Layer] = field(default_factory=list)
    pool: int = 1
    scale: float = 1.0

    @property
    def sizes(self) -> list[int]:
        """Pixels a side after each layer."""
        found: list[int] = []
        for layer in self.layers:
            found.append(layer.window.outputs(found[-1] if found else self.size))
        return found

    @property
    def geometry(self) -> list[list[int]]:
        """Of each layer: its window's size and pixels before the image, sides of input and output, activation."""
        sides = zip(self.layers, [self.size, *self.sizes], self.sizes, strict=False)
        return [[layer.window.size, layer.window.before, a, b, layer.kind] for layer, a, b in sides]

    @property
    def last(self) -> int:
        return (self.sizes or [self.size])[-1]

    @property
    def outputs(self) -> int:
        return self.last // self.pool

    @property
    def wraps(self) -> bool:
        return any(layer.wraps for layer in self.layers)


@dataclass
class Chain:
    """Stages, and the linear read-out of what is left; `equal`: it reads every position (flattened)."""

    entry: Step
    stages: list[Stage]
    readout: Layer
    equal: bool


class _Other(Exception):  # noqa: N818 - no error: the network is not such a chain
    pass


def find_chain(program: Program, features: Tensor) -> Chain | None:
    """The chain of a program whose input [1, channels, size, size] is this; None for any other network."""
    steps = program.steps
    linear = steps[0].apply is None and all(step.args == (before,) for before, step in pairwise(steps))
    if not linear or len(steps) < 2 or features.ndim != 4 or features.shape[2] != features.shape[3]:
        return None
    builder = _Builder(steps[0], features.shape[1], features.shape[2])
    try:
        for step in steps[1:]:
            builder.take(step)
        return builder.finish()
    except _Other:
        return None


class _Builder:
    """Reads a chain step by step, with a state of random covariances to find out what steps without weights do."""

    def __init__(self, entry: Step, channels: int, size: int) -> None:
        self.entry, self.channels = entry, channels
        self.stages = [Stage(size)]
        self.equal = False
        self.flat = False
        self.readout: Layer | None = None

    @property
    def size(self) -> int:
        return self.stages[-1].last

    def take(self, step: Step) -> None:
        if self.readout is not None:
            raise _Other
        if step.role == "layer":
            self._weighted(step)
        elif step.role == "activation":
            self._activation(step)
        elif step.mixes:
            self._pool(step)
        elif step.equal:
            self._flatten(step)
        elif step.role == "linear" and not step.variances and not step.own:
            self._unchanged(step)
        elif not (step.own and step.module is not None and not step.module.training):
            raise _Other

    def finish(self) -> Chain:
        if self.readout is None or not self.stages[0].layers:
            raise _Other
        stages = [stage for stage in self.stages if stage.layers or stage.pool > 1]
        for stage in stages:
            if not stage.layers:  # the loops need one
                stage.layers.append(NOTHING)
        return Chain(self.entry, stages, self.readout, self.equal)

    def _weighted(self, step: Step) -> None:
        if step.module is None or not step.module.__module__.startswith(("models.", "torch.")):
            raise _Other
        try:
            found = affine(step.module)
        except TypeError:
            raise _Other from None
        numbers = found.w_variance / found.size, found.b_variance, found.w_slope / found.size, found.b_slope
        if not found.windows:
            if not self.flat or found.fan_in != self.channels * self.size**2:
                raise _Other
            self.readout = Layer(*numbers)
            return
        window = found.windows[0]
        if self.flat or found.fan_in != self.channels or any(w != window for w in found.windows):
            raise _Other
        self.channels = found.fan_out
        self.stages[-1].layers.append(Layer(*numbers, self._known(window)))

    def _known(self, window: Window) -> Window:
        """The window, if the loops know it: stride 1, and no more padding than keeps the size."""
        padding = window.before + window.after
        circular = window.mode == "circular" and padding > 0
        fits = padding == window.size - 1 <= self.size if circular else padding < window.size <= self.size + padding
        if window.stride > 1 or window.dilation > 1 or not fits or window.mode not in ("constant", "circular"):
            raise _Other
        if window.size > 1 and any(o.window.size > 1 and o.wraps != circular for o in self.stages[-1].layers):
            raise _Other
        return window if circular else replace(window, mode="constant")

    def _activation(self, step: Step) -> None:
        both = None if step.function is None or self.flat else slopes(step.function)
        if both is None:
            raise _Other
        layers = self.stages[-1].layers
        if not layers or layers[-1].kind != STRAIGHT:
            layers.append(NOTHING)
        layers[-1] = replace(layers[-1], kind=BENT, right=both[0], left=both[1], dual=step.apply)

    def _probe(self, step: Step, full: bool) -> tuple[Tensor, Kernels]:
        """Random covariances of one pair, and what the step makes of them."""
        shape = (self.size,) * (4 if full else 2)
        nngp = torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        k = Kernels(nngp, torch.zeros_like(nngp), self.channels, shape[:2], full=full, gaussian=True)
        assert step.apply is not None
        return nngp, step.apply(k)

    def _pool(self, step: Step) -> None:
        """Non-overlapping windows that cover the image, or all of it."""
        if self.flat:
            raise _Other
        before, k = self._probe(step, full=True)
        if k.space not in ((), (1, 1)) and (len(k.space) != 2 or k.space[0] != k.space[1]):
            raise _Other
        outputs = k.space[0] if k.space else 1
        pool, rest = divmod(self.size, outputs)
        if rest:
            raise _Other
        sides = before.reshape(1, 1, *(outputs, pool) * 4)
        means = sides.mean((3, 5, 7, 9)).flatten()
        scale = float(k.nngp.flatten()[0] / means[0])
        if not torch.allclose(k.nngp.flatten(), scale * means, rtol=1e-9):
            raise _Other
        if pool > 1:
            self.stages[-1].pool = pool
            self.stages[-1].scale = scale / pool**4
            self.stages.append(Stage(outputs))
        elif abs(scale - 1) > 1e-12:
            raise _Other
        self.flat = not k.space

    def _flatten(self, step: Step) -> None:
        _, k = self._probe(step, full=False)
        if self.size > 1:
            self.equal = True
            self.stages[-1].pool, self.stages[-1].scale = self.size, 1 / self.size**2
        self.flat = k.flat or not k.space
        if not self.flat:
            raise _Other

    def _unchanged(self, step: Step) -> None:
        before, k = self._probe(step, full=False)
        if k.nngp.shape != before.shape or k.channel_axis != 1 or not torch.equal(k.nngp, before):
            raise _Other


def slopes(function: Callable[[Tensor], Tensor]) -> tuple[float, float] | None:
    """Right and left slope of a function that bends at 0 only; None for any other."""
    z = torch.linspace(-4, 4, 128, dtype=torch.float64)
    values = function(z.clone()).detach()
    if values.shape != z.shape:
        return None
    right, left = float(values[-1] / z[-1]), float(values[0] / z[0])
    straight = torch.where(z > 0, right * z, left * z)
    fits = math.isfinite(right) and math.isfinite(left) and torch.allclose(values.double(), straight, rtol=1e-12)
    return (right, left) if fits else None
