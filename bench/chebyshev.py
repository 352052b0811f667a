"""Stiff gradient flows by products alone: a stabilised explicit Runge-Kutta method with step control.

RKC of second order (Sommeijer, Shampine and Verwer 1997, "RKC: an explicit solver for parabolic PDEs"): with s stages
its steps are stable up to ``0.65 s^2`` over the fastest rate, where s steps of gradient descent reach ``2 s``. It needs
a Jacobian with real eigenvalues below zero, as every flow in a kernel has.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

TOLERANCE = 1e-5
"""Of one step, relative to 1 + the largest output: far below the distance of any prediction to a network."""
MOST_STEPS = 5_000
MOST_STAGES = 2_000
STALLED = 1e-7
"""A loss that falls by less than this share of itself while the time doubles will not fall to its end."""
DAMPING = 2 / 13


class Flow(ABC):
    """``dw/dt = slope(outputs(w))``, whose outputs are affine in w, and whose loss falls along it."""

    start: Tensor

    @abstractmethod
    def outputs(self, weights: Tensor) -> Tensor: ...

    @abstractmethod
    def slope(self, outputs: Tensor) -> Tensor:
        """dw/dt, of the shape of the weights."""

    @abstractmethod
    def loss(self, outputs: Tensor) -> Tensor: ...

    @abstractmethod
    def stiffness(self, outputs: Tensor) -> float:
        """A bound of the fastest rate."""


def integrate(flow: Flow, end: float) -> tuple[Tensor, float]:
    """The weights at which the loss has fallen to ``end``, and the time then.

    Raises:
        ValueError: the loss does not fall that far.
    """
    weights, time = flow.start, 0.0
    outputs = flow.outputs(weights)
    slope, loss = flow.slope(outputs), float(flow.loss(outputs))
    step = 0.1 / max(flow.stiffness(outputs), 1e-300)
    seen_time, seen_loss = 0.0, loss
    for _ in range(MOST_STEPS):
        if loss <= end:
            return weights, time
        if time > 2 * seen_time > 0:
            if seen_loss - loss < STALLED * loss:
                break
            seen_time, seen_loss = time, loss
        seen_time = seen_time or time
        rate = flow.stiffness(outputs)
        step = min(step, 0.65 * (MOST_STAGES**2 - 1) / rate)
        moved = _stages(flow, weights, slope, step, rate)
        moved_outputs = flow.outputs(moved)
        moved_slope = flow.slope(moved_outputs)
        # The estimate of the local error, seen in the outputs; the base is in neither term.
        error = flow.outputs(0.8 * (weights - moved) + 0.4 * step * (slope + moved_slope)) - flow.outputs(flow.start)
        size = float(error.abs().max() / (1 + moved_outputs.abs().max())) / TOLERANCE
        grow = min(5.0, max(0.1, 0.8 * (max(size, 1e-12) ** (-1 / 3)))) if math.isfinite(size) else 0.1
        if not size <= 1:
            step *= grow
            continue
        moved_loss = float(flow.loss(moved_outputs))
        if moved_loss <= end:
            share = _crossing(flow, end, step, (outputs, moved_outputs), (slope, moved_slope))
            return _hermite(share, step, (weights, moved), (slope, moved_slope)), time + share * step
        weights, outputs, slope, loss, time = moved, moved_outputs, moved_slope, moved_loss, time + step
        step *= grow
    raise ValueError(
        f"The loss stays at {loss:.4g} after a time of {time:.3g}, above the {end:.4g} at which it is to end: the "
        "kernel does not tell the classes apart that far."
    )


def _stages(flow: Flow, start: Tensor, slope: Tensor, step: float, rate: float) -> Tensor:
    """One step from ``start``, with as many stages as it takes to be stable (equations 2.1 to 2.5 of the paper)."""
    s = max(2, 1 + math.ceil(math.sqrt(1 + 1.54 * step * rate)))
    w0 = 1 + DAMPING / s**2
    t, d, dd = _chebyshev(s, w0)
    w1 = d[s] / dd[s]
    b = [0.0, 0.0, *(dd[j] / d[j] ** 2 for j in range(2, s + 1))]
    b[0] = b[1] = b[2]
    before, now = start, start + b[1] * w1 * step * slope
    for j in range(2, s + 1):
        mu, nu, scaled = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        back = -(1 - b[j - 1] * t[j - 1]) * scaled
        moved = (1 - mu - nu) * start + mu * now + nu * before + step * back * slope
        moved = moved + scaled * step * flow.slope(flow.outputs(now))
        before, now = now, moved
    return now


def _chebyshev(s: int, x: float) -> tuple[list[float], list[float], list[float]]:
    """T_j(x) and its first two derivatives, j = 0 ... s."""
    t, d, dd = [1.0, x], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, s + 1):
        dd.append(4 * d[-1] + 2 * x * dd[-1] - dd[-2])
        d.append(2 * t[-1] + 2 * x * d[-1] - d[-2])
        t.append(2 * x * t[-1] - t[-2])
    return t, d, dd


def _hermite(share: float, step: float, ends: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor]) -> Tensor:
    """The cubic through both ends of a step with their slopes, at a share of it."""
    s = share
    return (
        (1 + 2 * s) * (1 - s) ** 2 * ends[0]
        + s**2 * (3 - 2 * s) * ends[1]
        + step * (s * (1 - s) ** 2 * slopes[0] - s**2 * (1 - s) * slopes[1])
    )


def _crossing(
    flow: Flow, end: float, step: float, outputs: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor]
) -> float:
    """At which share of the step the loss meets its end, by bisection: outputs are affine in the weights."""
    rest = flow.outputs(flow.start)
    moves = (flow.outputs(slopes[0]) - rest, flow.outputs(slopes[1]) - rest)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if float(flow.loss(_hermite(middle, step, outputs, moves))) > end:
            low = middle
        else:
            high = middle
    return high
