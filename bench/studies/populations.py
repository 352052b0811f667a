"""Finite domains with targets on them: what eigenlearning's experiments train kernels and networks on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.theory.circle import circle_points, circle_spectrum, frequency_counts
from bench.theory.hypercube import hypercube_spectrum, level_sizes
from bench.theory.spectrum import Kernel, Spectrum, Target
from bench.theory.sphere import harmonic_counts, sphere_spectrum
from bench.train import Trainer
from bench.trained import Member, seed_of
from models.limits import infinite_width
from models.mlp import mlp
from tasks.sphere import legendre
from tasks.task import Task

B_STD = 0.1
"""Of the paper's networks (W_std sqrt 2, read-out 1 without bias)."""


@dataclass(frozen=True)
class Population:
    """M points of a domain with one pure mode of each level asked for as a target, and the spectrum there.

    Attributes:
        x: [M, d], float64.
        kernel: [M, M], the infinite-width NTK.
        targets: [M, c], of unit mean square under the domain's distribution.
        power: [c, levels], 1 in the target's level.
        mean_square: [c], of the targets on these points before they were scaled to 1: of a sample not exactly 1.
        whole: whether the points are the whole domain (the test set is then all of it), or a sample of it.
    """

    x: Tensor
    kernel: Tensor
    spectrum: Spectrum
    targets: Tensor
    power: Tensor
    mean_square: Tensor
    whole: bool

    @property
    def target(self) -> Target:
        return Target(self.power, self.power.sum(1))


def network(inputs: int, width: int, depth: int, activation: str = "relu") -> nn.Module:
    """The paper's network, in NTK parameterization; W_std 1.5 where the activation is not ReLU."""
    return mlp(inputs, width, depth, 1, activation, w_std=2**0.5 if activation == "relu" else 1.5, b_std=B_STD)


def ntk(inputs: int, depth: int, activation: str = "relu") -> Kernel:
    """Its infinite-width NTK."""
    limit = infinite_width(network(inputs, 8, depth, activation).double())
    return lambda a, b=None: limit(a, b).ntk


def corners(d: int) -> Tensor:
    """{-1, 1}^d, float64 [2^d, d]; bit j of a row's index says whether x_j is -1."""
    return 1 - 2 * ((torch.arange(2**d)[:, None] >> torch.arange(d)) & 1).to(torch.float64)


def parities(d: int) -> Tensor:
    """All 2^d parities on the corners, [2^d points, 2^d modes], each of unit mean square; bits as in ``corners``."""
    codes = torch.arange(2**d)
    odd = codes[:, None] & codes
    for shift in (16, 8, 4, 2, 1):
        odd = odd ^ (odd >> shift)
    return 1 - 2 * (odd & 1).to(torch.float64)


def cube(d: int, depth: int, levels: Sequence[int]) -> Population:
    """The hypercube; the target of level k is the parity of the first k bits."""
    x, kernel = corners(d), ntk(d, depth)
    targets = torch.stack([x[:, :k].prod(1) for k in levels], 1)
    return _population(x, kernel, hypercube_spectrum(kernel, d), targets, _one(levels, len(level_sizes(d))), True)


def circle(points: int, depth: int, levels: Sequence[int], activation: str = "relu") -> Population:
    """M equidistant points; the target of frequency k is sqrt(2) cos(k theta)."""
    x, kernel = circle_points(points), ntk(2, depth, activation)
    angles = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    modes = torch.stack([(angles * k).cos() for k in levels], 1)
    power = _one(levels, len(frequency_counts(points)))
    return _population(x, kernel, circle_spectrum(kernel, points), modes * 2**0.5, power, True)


def sphere(
    d: int, depth: int, levels: Sequence[int], points: int, seed: int, degrees: int = 60, radius: float | None = None
) -> Population:
    """A sample of the sphere of a radius (None: sqrt d); the target of degree k is the zonal harmonic of one axis.

    Samples of one seed differ between radii by a factor alone, and their targets not at all.
    """
    radius = d**0.5 if radius is None else radius
    generator = torch.Generator().manual_seed(seed_of("data", seed))
    x = torch.randn(points, d, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    kernel = ntk(d, depth)
    counts = harmonic_counts(d, degrees)
    # legendre(1) = 1, so that by the addition theorem its mean square is one over the number of harmonics.
    targets = torch.stack([legendre(x[:, 0], d, k) * counts[k].sqrt() for k in levels], 1)
    spectrum = sphere_spectrum(kernel, d, degrees, radius)
    return _population(x * radius, kernel, spectrum, targets, _one(levels, degrees + 1), False)


def fit_networks(
    net: nn.Module,
    trainer: Trainer,
    x: Tensor,
    targets: Tensor,
    drawn: Tensor,
    *,
    first_init: int = 0,
    inits: int = 1,
    shared: bool = True,
) -> tuple[Tensor, Tensor]:
    """Networks on training sets drawn from a population, each target its own.

    Args:
        x: [M, *shape].
        targets: [M, c].
        drawn: [sets, n], rows of x.
        first_init: the number of the initialisations of the first set, to tell those of different seeds apart.
        shared: whether the targets of a set share its initialisations.

    Returns:
        outputs on all M points, [sets, inits, c, M], and relative train losses, [sets, inits, c]. Outputs of networks
        that did not come to the trainer's end are nan.
    """
    tasks = [Task("population", x[rows], targets[rows], x, targets) for rows in drawn.cpu()]
    sets, n, c = len(tasks), drawn.shape[1], targets.shape[1]
    members = [
        Member(data, (first_init * inits + init) * (1 if shared else c) + (0 if shared else k), target=k)
        for data in range(sets)
        for init in range(inits)
        for k in range(c)
    ]
    trained = trainer.fit(net, tasks, members)
    done = torch.tensor([status == "done" for status in trained.status])
    outputs = trained.f_T[:, n:, 0].cpu()
    outputs[~done] = torch.nan
    return outputs.reshape(sets, inits, c, -1), trained.losses.reshape(sets, inits, c)


def _population(
    x: Tensor, kernel: Kernel, spectrum: Spectrum, targets: Tensor, power: Tensor, whole: bool
) -> Population:
    square = targets.square().mean(0)
    return Population(x, kernel(x), spectrum, targets / square.sqrt(), power, square, whole)


def _one(levels: Sequence[int], count: int) -> Tensor:
    if min(levels) < 0 or max(levels) >= count:
        raise ValueError(f"levels must lie between 0 and {count - 1}, not {list(levels)}.")
    return torch.nn.functional.one_hot(torch.tensor(list(levels)), count).to(torch.float64)
