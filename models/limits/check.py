"""The conformance test of a rule: finite networks around the layer, at two widths, against the limit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from models.checks import check_count
from models.layers import Conv2d, Linear
from models.limits.infinite import infinite_width

LARGEST_DEVIATION = 5.0  # standard errors; of 16 entries one beyond in 1e5 checks, were they independent
LARGEST_ERROR = 0.1  # standard error over the kernel's size, beyond which a check says nothing


class Check(NamedTuple):
    """How far finite networks, extrapolated to infinite width, are from the limit."""

    nngp: float  # largest deviation in standard errors
    ntk: float
    error: float  # largest standard error, relative to the largest entry of its kernel


def check_rule(
    make: Callable[[int], nn.Module],
    space: tuple[int, ...] = (),
    width: int = 64,
    draws: int = 200,
    activation: bool = False,
    channels_last: bool = False,
    seed: int = 0,
) -> Check:
    """Check the rule of a layer against Monte Carlo over finite networks; AssertionError where they disagree.

    `make(width)` returns a fresh layer that acts on `width` channels (with the random weights it starts from); it is
    put between two random layers, after a ReLU if `activation` (then the layer must take what is not Gaussian), on
    random inputs of three channels at the positions `space` (none, or a height and width; with `channels_last`, as
    attention takes them, [samples, *space, channels], any). Networks of `width` and twice the width, `draws` of each,
    are extrapolated in 1 / width. The layer need not keep the number of channels. Returns the deviations; raises
    ValueError for bad numbers, NoInfiniteWidthLimit where no rule is found.

    A user's layer, its rule and the check:

        class Blend(nn.Module):
            '''A share of a fresh random rotation of the features, and the rest of the features.'''

            def __init__(self, width: int, share: float) -> None:
                super().__init__()
                self.share, self.weight = share, nn.Parameter(torch.randn(width, width))

            def forward(self, x):
                turned = x @ self.weight.T / len(self.weight) ** 0.5
                return self.share * turned + (1 - self.share) * x

        @rule(Blend)
        def blend(module: Blend, k: Kernels) -> Kernels:
            kept = module.share**2 + (1 - module.share) ** 2
            return replace(k, nngp=kept * k.nngp, ntk=kept * k.ntk + module.share**2 * k.nngp)

        check_rule(lambda width: Blend(width, 0.3))

    The rule returns what changes: here units are random combinations plus themselves, so covariances are scaled by
    share^2 + (1 - share)^2, and the weights, of standard deviation 1, add share^2 times the covariance to the NTK.
    `gaussian` stays as it was. Had the layer pooled, its rule would say mixes=True, and so on: see
    models.limits.registry.Rule.
    """
    check_count("width", width, minimum=8)
    check_count("draws", draws, minimum=8)
    generator = torch.Generator().manual_seed(seed)
    shape = (*space, 3) if channels_last else (3, *space)
    x = torch.randn(4, *shape, dtype=torch.float64, generator=generator)
    first = _pointwise if channels_last or not space else _convolution
    if space and not channels_last and len(space) != 2:
        raise ValueError(f"space must be () or (height, width) unless channels_last, not {space}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build = functools.partial(_network, make, first, x, activation=activation)
        samples = [_samples(build, x, w, draws) for w in (width, 2 * width)]
        net = build(width)
    if any(p.numel() for p in net.parameters()) and _standard(net):
        raise ValueError("make must not use layers in standard parameterization: their NTK grows with the width.")
    limit = infinite_width(net)(x)
    nngp = _deviation(samples[0][0], samples[1][0], limit.nngp, "NNGP")
    ntk = _deviation(samples[0][1], samples[1][1], limit.ntk, "NTK")
    return Check(nngp[0], ntk[0], max(nngp[1], ntk[1]))


def _standard(net: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return any(isinstance(m, kinds) or getattr(m, "parameterization", "ntk") == "standard" for m in net.modules())


def _network(
    make: Callable[[int], nn.Module], first: Callable[[int], nn.Module], x: Tensor, width: int, activation: bool
) -> nn.Sequential:
    """Random layer - layer under test - flatten - read-out."""
    layers = [first(width), *([nn.ReLU()] if activation else []), make(width)]
    body = nn.Sequential(*layers, *([nn.Flatten(1)] if x.ndim > 2 else [])).double()
    with torch.no_grad():
        shape = body(x[:1]).shape
    if len(shape) != 2:
        raise ValueError(f"make must return a layer of [samples, channels, positions], not of {list(shape)}.")
    return nn.Sequential(*body, Linear(shape[1], 1).double())


def _pointwise(width: int) -> nn.Module:
    return Linear(3, width, 1.0, 0.3)


def _convolution(width: int) -> nn.Module:
    return Conv2d(3, width, 3, padding=1, w_std=1.0, b_std=0.3)


def _samples(build: Callable[[int], nn.Sequential], x: Tensor, width: int, draws: int) -> tuple[Tensor, Tensor]:
    """[draws, n, n]: covariances of the features before the read-out, and NTKs, of random networks."""
    nngp, ntk = [], []
    for _ in range(draws):
        net = build(width)
        with torch.no_grad():
            features = net[:-1](x)
        nngp.append(features @ features.T / features.shape[1])
        ntk.append(_empirical(net, x))
    return torch.stack(nngp), torch.stack(ntk)


def _empirical(net: nn.Module, x: Tensor) -> Tensor:
    params = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        return functional_call(net, values, (x,))[:, 0]

    rows = torch.cat([jacobian.flatten(1) for jacobian in jacrev(outputs)(params).values()], 1)
    return rows @ rows.T


def _deviation(narrow: Tensor, wide: Tensor, limit: Tensor, name: str) -> tuple[float, float]:
    """Largest deviation in standard errors, and largest relative error; AssertionError where it is too large."""
    draws = len(narrow)
    mean = 2 * wide.mean(0) - narrow.mean(0)  # what is left is of second order in 1 / width
    error = (4 * wide.var(0) + narrow.var(0)).sqrt() / math.sqrt(draws)
    size = limit.abs().max()
    floor = 1e-9 * size  # both exact, as for a layer without weights on frozen ones
    deviation = float(((mean - limit).abs() / (error + floor)).max())
    relative = float(error.max() / size) if size > 0 else 0.0
    if not deviation <= LARGEST_DEVIATION:
        raise AssertionError(
            f"The rule's {name} is {deviation:.1f} standard errors from finite networks (more than "
            f"{LARGEST_DEVIATION:g}): limit {limit.flatten()[:4].tolist()}, networks {mean.flatten()[:4].tolist()}, ..."
        )
    if relative > LARGEST_ERROR:
        raise AssertionError(
            f"The check says nothing: the {name} is known to {relative:.0%} only. Raise draws or width."
        )
    return deviation, relative
