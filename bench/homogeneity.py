"""Homogeneous networks, and the kernel machine that each of them is exactly at the end of training with weight decay.

For a network with ``z(s theta) = s^L z(theta)``, Euler's identity is ``grad z . theta = L z``. At a stationary point of
``L(theta) + (decay / 2) |theta|^2``, with the mean loss ``1/(2N) sum r^2`` of ``f = (z - z_0) / gamma``, theta is
``-grad L / decay``; so z is a combination of the kernel's columns, and

    f(x) = b(x) + K_T(x, X) [K_T(X, X) + gamma^2 N L decay]^{-1} (y - b(X)),    b = -z_0 / gamma,

with ``K_T`` the NTK of z at that point (Lauditi, Bordelon and Pehlevan 2025, for infinite width; here it is Euler's
identity, at any width). Exact where z is once differentiable at theta: for ReLU the kinks settle on the data, and some
per cent remain.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

SCALES = (0.5, 1.25, 2.0)
TOLERANCE = 1e-9
"""Of z(s theta) against s^L z(theta), relative: some thousand roundings of float64."""


class InhomogeneousError(ValueError):
    """A network without a degree; one sentence that says what it takes."""


def degree(net: nn.Module, x: Tensor, params: Mapping[str, Tensor] | None = None) -> float:
    """L, for which ``z(x; s theta) = s^L z(x; theta)``: measured, in float64.

    Depth + 1 for a ReLU network whose only biases are those of the first layer; a bias of a later layer, or an
    activation that is not a power, has none.

    Args:
        x: [n, *shape], inputs at which it is checked.
        params: name -> value, all that is trained, where not the network's own. A network whose biases are zero there
            is checked as if they were one: training moves them.

    Raises:
        InhomogeneousError: there is no degree.
    """
    double = copy.deepcopy(net).double()
    theta = dict(double.named_parameters()) if params is None else dict(params)
    theta = {name: value.detach().double() for name, value in theta.items()}
    theta = {name: value if bool(value.any()) else torch.ones_like(value) for name, value in theta.items()}
    device = next(iter(theta.values())).device
    x = x.to(device, torch.float64)

    def outputs(scale: float) -> Tensor:
        scaled = {name: scale * value for name, value in theta.items()}
        return functional_call(double, scaled, (x,)).detach()

    at_one = outputs(1.0)
    size = float(at_one.norm())
    found = math.log2(float(outputs(2.0).norm()) / size) if size > 0 else math.nan
    for scale in SCALES:
        expected = scale**found * at_one
        error = float((outputs(scale) - expected).norm() / expected.norm()) if math.isfinite(found) else math.inf
        if not error <= TOLERANCE:
            raise InhomogeneousError(
                f"{type(net).__name__} is not homogeneous in its parameters (z({scale:g} theta) is no power of "
                f"{scale:g} times z(theta)), so weight decay has no exact ridge: leave out every bias but the first "
                "layer's (readout_b_std=null), and use relu or relu^2."
            )
    return found


def exact_ridge(degree: float, gamma: float, n: int, decay: float) -> float:
    """``gamma^2 n L decay``, in units of the NTK of z, for the loss ``1/(2n) sum r^2 + (decay / 2) |theta|^2``.

    Written as ``wd`` of the flow ``theta' = -gamma^2 grad L - wd theta``, the ridge is ``n L wd``.
    """
    return gamma**2 * n * degree * decay
