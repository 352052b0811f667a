"""Kernel in, network out: `design`."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.checks import check_choice, check_count
from models.design.certificate import ANGLES, SPREAD, Certificate, Norms, tails, variances
from models.design.data import check_data, check_inputs, coefficients_for
from models.design.erf_units import ErfUnits, fit_erf_units
from models.design.fit import FINE, GOOD, MOST, fit_piecewise
from models.design.hermite import KINDS, Hermite, check_radius, hermite_activation
from models.design.piecewise import PiecewiseLinear
from models.design.targets import Target, from_callable, from_coefficients, from_limit, from_name
from models.design.threads import one_thread
from models.layers import Linear
from models.limits import InfiniteWidth, infinite_width

BASES = ("auto", "hermite", "piecewise_linear", "erf_units")
Activation = Hermite | PiecewiseLinear | ErfUnits
NEAR = 101  # angles next to 0 and to pi, beside the even grid, at which the largest error is looked for
ORDER = 6  # to which names and callables are truncated in the Hermite basis: higher orders have heavy tails


@dataclass(frozen=True)
class Design:
    """An activation whose wide network with one hidden layer has a chosen kernel."""

    activation: Activation
    target: Target
    kind: str
    radius: float
    certificate: Certificate

    def network(self, d: int, width: int, out: int) -> nn.Sequential:
        """x [n, ...] of d entries -> [n, out]: NTK parameterization, unit weights, no biases; one hidden layer."""
        for field, value in {"d": d, "width": width, "out": out}.items():
            check_count(field, value)
        return _network(self.activation, d, width, out)

    def kernel(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """[n1, n2]: the infinite-width kernel, in the dtype of x1 [n1, ...], x2 [n2, ...] (None: x1 with itself).

        Exact for any norms; a function of the cosine alone for |x|^2 = radius^2 d. Raises ValueError for anything but
        finite float tensors of one sample shape.
        """
        return _kernel(self.activation, self.kind, x1, x2)

    def width_for(self, tolerance: float) -> int:
        """The least width whose kernel entries have a standard deviation of at most `tolerance` K(1)."""
        return self.certificate.width_for(tolerance)


def design(
    target: Callable[[Tensor], Tensor] | Sequence[float] | str | InfiniteWidth | tuple[Tensor, Tensor],
    kind: str = "ntk",
    basis: str = "auto",
    knots: int | str = "auto",
    radius: float = 1.0,
) -> Design:
    """Find the activation whose network with one hidden layer has the kernel `target` at infinite width.

    target: K(c) of the cosine c, called with float64 tensors [N]; Taylor coefficients a_0, a_1, ...; "relu:L" or
        "erf:L", networks of L hidden layers (w_std^2 = 2, b_std = .1, read-out 1 without bias, on |x|^2 = d); an
        `infinite_width` limit; or data (X [n, ...], y [n] or [n, c]), for which the coefficients of least leave-one-out
        error are found.
    kind: which kernel it is, "ntk" or "nngp": one activation decides both.
    basis: "hermite", exact for coefficients; "erf_units", error functions and a line, for "erf:L"; "piecewise_linear"
        for everything else; "auto" chooses so. Names, callables and limits in the Hermite basis end at order 6.
    knots: of the piecewise-linear basis, 1 to 8, or units of the erf basis; "auto": as few as reach an error of
        .005 K(1).
    radius: inputs are taken to have |x|^2 = radius^2 d.

    Every kernel that is positive semi-definite on spheres of all dimensions can be realised (Simon, Anand & DeWeese
    2022). Raises ValueError with one sentence for others, naming the order of the negative Taylor coefficient, and for
    unknown names; warns of heavy tails, and of data off the sphere.
    """
    check_choice("kind", kind, KINDS)
    check_choice("basis", basis, BASES)
    check_radius(radius)
    if knots != "auto" and not (isinstance(knots, int) and not isinstance(knots, bool) and 1 <= knots <= MOST):
        raise ValueError(f"knots must be 'auto' or an integer from 1 to {MOST}, not {knots!r}.")
    aim, data = _target(target, kind, radius)
    if basis == "auto":
        unfitted = "erf_units" if aim.name.startswith("erf:") else "piecewise_linear"
        basis = unfitted if aim.order is None else "hermite"
    if basis == "hermite" and knots != "auto":
        raise ValueError(f"knots must be 'auto' with basis='hermite', which has none, not {knots!r}.")
    with one_thread():
        activation, tail = _activation(aim, kind, basis, None if knots == "auto" else int(knots), radius)
        certificate = _certificate(activation, aim, kind, radius, tail)
    for sentence in _cautions(certificate, data):
        warnings.warn(f"design: {sentence}.", UserWarning, stacklevel=2)
    return Design(activation, aim, kind, float(radius), certificate)


def _activation(
    aim: Target, kind: str, basis: str, knots: int | None, radius: float
) -> tuple[Activation, float | None]:
    """The activation, and the tail that it leaves out."""
    if basis == "hermite":
        kept = [max(a, 0.0) for a in aim.taylor(ORDER if aim.order is None else aim.order)]
        return hermite_activation(kept, kind, radius), max(0.0, 1 - sum(kept) / aim.at_one)
    if basis == "erf_units":
        return fit_erf_units(aim.kernel, kind, GOOD, knots, radius)[0], None
    return fit_piecewise(aim.kernel, kind, knots, radius).activation, None


def _target(target: Any, kind: str, radius: float) -> tuple[Target, Tensor | None]:
    """What to aim at, and the inputs that came with it."""
    if isinstance(target, str):
        return from_name(target, kind), None
    if isinstance(target, InfiniteWidth):
        return from_limit(target, kind, radius), None
    if isinstance(target, tuple) and len(target) == 2 and any(isinstance(t, Tensor) for t in target):
        x, y = check_data(*target)
        return from_coefficients(coefficients_for(x, y)), x
    if callable(target) and not isinstance(target, nn.Module):
        return from_callable(target), None
    try:
        if isinstance(target, Mapping | Set):
            raise TypeError("no order")
        coefficients = [float(a) for a in target]
    except (TypeError, ValueError):
        raise ValueError(
            "target must be a function of the cosine, a list of Taylor coefficients, a name such as 'relu:4', a limit "
            f"from models.limits.infinite_width, or tensors (X, y), not {type(target).__name__}."
        ) from None
    return from_coefficients(coefficients), None


def _certificate(activation: Activation, target: Target, kind: str, radius: float, tail: float | None) -> Certificate:
    near = torch.logspace(-7, -3, NEAR, dtype=torch.float64)  # below, cosines in float64 are 1
    theta = torch.cat([torch.linspace(0, math.pi, FINE, dtype=torch.float64), near, math.pi - near])
    circle = radius * math.sqrt(2) * torch.stack([torch.cos(theta), torch.sin(theta)], 1)
    realised = _kernel(activation, kind, circle[:1], circle)[0]
    realised[0] = _kernel(activation, kind, circle[:1], None)[0, 0]
    at_one = target.at_one
    error = (realised - target.kernel(torch.cos(theta))).abs() / at_one
    worst = int(error.argmax())
    angles = torch.linspace(0, math.pi, ANGLES, dtype=torch.float64)
    found = variances(activation, activation.breaks(), radius, kind, angles)
    kurtosis, trusted = tails(activation, activation.breaks(), radius, kind)

    def norms(x: Tensor) -> Norms:
        return _norms(activation, kind, radius, at_one, x)

    return Certificate(
        kind=kind,
        at_one=at_one,
        error=float(error[worst]),
        worst=math.cos(float(theta[worst])),
        tail=tail,
        angles=angles,
        variances=found / at_one**2,
        kurtosis=kurtosis,
        trusted_width=trusted,
        norms=norms,
    )


def _network(activation: nn.Module, d: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(1), Linear(d, width), copy.deepcopy(activation), Linear(width, out))


def _kernel(activation: nn.Module, kind: str, x1: Tensor, x2: Tensor | None) -> Tensor:
    for name, x in {"x1": x1, "x2": x1 if x2 is None else x2}.items():
        check_inputs(name, x)
    limit = infinite_width(_network(activation, math.prod(x1.shape[1:]), 1, 1))
    found = limit(x1.double(), None if x2 is None else x2.double())
    return (found.ntk if kind == "ntk" else found.nngp).to(x1.dtype)


def _norms(activation: nn.Module, kind: str, radius: float, at_one: float, x: Tensor) -> Norms:
    check_inputs("x", x)
    x = x.flatten(1).double()
    norm = x.norm(dim=1)
    if bool((norm == 0).any()):
        raise ValueError("x holds an input of norm 0, which is on no sphere.")
    sphere = radius * math.sqrt(x.shape[1])
    on = x * (sphere / norm)[:, None]
    difference = _kernel(activation, kind, x, None) - _kernel(activation, kind, on, None)
    spread = float(norm.std(correction=0) / norm.mean())
    return Norms(spread, float(norm.mean() / sphere - 1), float(difference.abs().max()) / at_one)


def _cautions(certificate: Certificate, x: Tensor | None) -> list[str]:
    cautions = []
    if certificate.heavy_tailed:
        cautions.append(
            f"the activation is heavy-tailed (kurtosis {certificate.kurtosis:.3g}): networks narrower than "
            f"{certificate.trusted_width} scatter less than the certificate says, and now and then far more"
        )
    if x is None:
        return cautions
    norms = certificate.norms(x)
    if norms.spread > SPREAD or abs(norms.offset) > SPREAD:
        cautions.append(
            f"the inputs are off the sphere |x|^2 = radius^2 d (mean norm off by {norms.offset:+.0%}, spread "
            f"{norms.spread:.0%}): the kernel is off by up to {norms.error:.0%} of K(1); rescale each input"
        )
    return cautions
