"""What designs achieve: error of the kernel, units and CPU seconds; and whether their certificates are honest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import store
from bench.ntk import empirical_ntk
from bench.record import Record, summarise
from bench.studies.designs import on_sphere
from bench.studies.panel import Curve, Panel, named_panel, page, places
from bench.studies.study import result
from bench.trained import seed_of
from models.design import Design, ErfUnits, PiecewiseLinear, design
from models.design.fit import GOOD

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp(c - 1)": lambda c: torch.exp(c - 1),
    "1 / (2 - c)": lambda c: 1 / (2 - c),
    "1 / (3 - c)^2": lambda c: 1 / (3 - c) ** 2,
}
"""Kernels of the cosine, beside the named networks that ``design`` knows."""

LOW, HIGH = 0.8, 1.25  # measured over predicted noise of an honest certificate


@dataclass(frozen=True)
class DesignErrors:
    """Settings: targets are names that ``design`` knows, or of ``FUNCTIONS``. Nothing is random: there is no seed."""

    targets: tuple[str, ...] = (*(f"relu:{depth}" for depth in range(2, 9)), *FUNCTIONS, "erf:2", "erf:4", "erf:8")


def design_errors(settings: DesignErrors) -> Record:
    """Arrays [1, targets]: ``error`` (largest over c, relative to K(1)), ``units`` (knots, or error functions),
    ``seconds`` (CPU) and ``noise`` (standard deviation of an entry at width 1,024 and c = 1, relative to K(1)).
    """
    rows: dict[str, list[float]] = {"error": [], "units": [], "seconds": [], "noise": []}
    for target in settings.targets:
        begun = time.process_time()
        made = named_design(target)
        rows["seconds"].append(time.process_time() - begun)
        rows["error"].append(made.certificate.error)
        rows["units"].append(_units(made))
        rows["noise"].append(float(made.certificate.standard_deviation(1024)))
    arrays = {name: np.array([values]) for name, values in rows.items()}
    scores = tuple(
        summarise(f"{target}/{name}", [values[i]], [0])
        for i, target in enumerate(settings.targets)
        for name, values in rows.items()
    )
    panels = (
        named_panel("Largest error of the kernel", settings.targets, "error / K(1)",
                    (Curve("error", "error", "kernel"), Curve("sought", "sought", "reference")), True, "target"),
        named_panel("Knots, or error functions", settings.targets, "units", (Curve("units", "units", "kernel"),),
                    what="target"),
        named_panel("Time to find it", settings.targets, "CPU seconds", (Curve("seconds", "seconds", "kernel"),), True,
                    "target"),
        named_panel("Noise of one network", settings.targets, "std at width 1,024 / K(1)",
                    (Curve("noise", "noise", "kernel"),), what="target"),
    )  # fmt: skip
    text = (
        f"Designs by design(target): bent lines, with as few knots as reach an error of {GOOD:g} K(1), and error "
        "functions for the kernels of erf networks. Errors are exact up to the grid of 2,001 angles."
    )
    arrays |= {"sought": np.full((1, len(settings.targets)), GOOD), **places(settings.targets)}
    return result(scores, arrays, page("What designs achieve", text, panels))


@dataclass(frozen=True)
class Certificates:
    """Settings: each seed is ``n`` points on a sphere in ``d`` dimensions, and ``nets`` networks of ``width``."""

    targets: tuple[str, ...] = ("relu:4", "erf:4", "exp(c - 1)", "1 / (2 - c)")
    n: int = 24
    d: int = 8
    width: int = 1024
    nets: int = 8
    seeds: tuple[int, ...] = tuple(range(200, 240))


def certificates(settings: Certificates) -> Record:
    """Noise of finite networks' kernels over what the certificate says, root mean squares over entries.

    Arrays [seeds, targets]: ``ratio``, over ``nets`` networks too; ``single``, of the first network alone; ``within_``
    either, whether it is from .8 to 1.25. ``spread_`` either [1, targets]: standard deviation over the seeds. Scores:
    the means of all.
    """
    rows: dict[str, list[list[float]]] = {"ratio": [], "single": []}
    designs = [named_design(target) for target in settings.targets]
    for seed in settings.seeds:
        x = on_sphere(settings.n, settings.d, seed_of("data", seed))
        found = [_ratios(made, settings, x, seed) for made in designs]
        for name, row in zip(rows, zip(*found, strict=True), strict=True):
            rows[name].append(list(row))
    arrays = {name: np.array(whole) for name, whole in rows.items()}
    for name in tuple(arrays):
        arrays[f"within_{name}"] = ((arrays[name] >= LOW) & (arrays[name] <= HIGH)).astype(float)
        arrays[f"spread_{name}"] = arrays[name].std(0, ddof=1)[None]
    within = f"share within {LOW:g} to {HIGH:g}"
    scores = []
    for i, target in enumerate(settings.targets):
        for name in rows:
            scores += [
                summarise(f"{target}/{name}, measured over certified", list(arrays[name][:, i]), settings.seeds),
                summarise(f"{target}/{name}, {within}", list(arrays[f"within_{name}"][:, i]), settings.seeds),
                summarise(f"{target}/{name}, standard deviation", [float(arrays[f"spread_{name}"][0, i])], [0]),
            ]

    def panel(title: str, label: str, prefix: str = "") -> Panel:
        curves = (Curve(f"{settings.nets} networks", f"{prefix}ratio", "network"),
                  Curve("one network", f"{prefix}single", "network"))  # fmt: skip
        return named_panel(title, settings.targets, label, curves, what="target")

    panels = (
        panel("Measured noise over the certificate's", "ratio, mean over point sets"),
        panel("How often it is near", within, "within_"),
        panel("Spread over point sets", "standard deviation of the ratio", "spread_"),
    )
    text = (
        f"Root mean square distance of the kernels of networks of width {settings.width} from the kernel designed, "
        f"over what the certificate says, on {settings.n} points: {settings.nets} networks, and one alone; "
        f"{len(settings.seeds)} sets of points and networks."
    )
    card = {**store.plain(settings), **page("Are certificates honest", text, panels)}
    return result(tuple(scores), arrays | places(settings.targets), card)


def named_design(target: str) -> Design:
    """The design of a name that ``design`` knows, or of a function of ``FUNCTIONS``."""
    return design(FUNCTIONS.get(target, target))


def _units(made: Design) -> float:
    activation: Any = made.activation
    if isinstance(activation, PiecewiseLinear):
        return len(activation.knots)
    assert isinstance(activation, ErfUnits)
    return len(activation.weights)


def _ratios(made: Design, settings: Certificates, x: Tensor, seed: int) -> tuple[float, float]:
    net: nn.Module = made.network(settings.d, settings.width, 1).double()
    generator = torch.Generator().manual_seed(seed_of("init", seed))
    params = {
        name: torch.randn(settings.nets, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in net.named_parameters()
    }
    found = empirical_ntk(net, x, outputs=0, params=params)
    assert isinstance(found, Tensor)
    squares = ((found - made.kernel(x)) / made.certificate.at_one).square().mean((1, 2))
    certified = made.certificate.standard_deviation(settings.width, x @ x.T / settings.d).square().mean()
    return float((squares.mean() / certified).sqrt()), float((squares[0] / certified).sqrt())
