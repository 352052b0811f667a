"""Checks and float64 of what the theory is given; each refusal is one sentence that names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-10
"""Negative eigenvalues up to this share of the largest are rounding noise of an eigendecomposition, clipped to 0."""


def float64(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """A float64 tensor of finite numbers, on `device` (None: its own), gradients kept.

    Raises:
        ValueError: it is no array of numbers, or holds NaN or infinity.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            array = np.array(value)  # a copy: torch warns of read-only arrays
            tensor = torch.from_numpy(array if np.iscomplexobj(array) else array.astype(np.float64))
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise ValueError(f"{name} must be a number or an array of numbers, not {kind}.") from None
    if tensor.is_complex():
        raise ValueError(f"{name} must be real, not complex.")
    tensor = tensor.to(device=device or tensor.device, dtype=torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, but holds NaN or infinity.")
    return tensor


def at_least_zero(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """As `float64`, and nothing negative."""
    tensor = float64(name, value, device)
    if bool((tensor < 0).any()):
        raise ValueError(f"{name} must be at least 0, not {float(tensor.min()):.6g}.")
    return tensor


def above_zero(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """As `float64`, and everything positive."""
    tensor = float64(name, value, device)
    if bool((tensor <= 0).any()):
        raise ValueError(f"{name} must be above 0, not {float(tensor.min()):.6g}.")
    return tensor


def spectrum(eigenvalues: Any, multiplicities: Any = None) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues [..., modes] of at least 0, and multiplicities of their shape or None (all 1).

    Raises:
        ValueError: no mode, NaN, infinity, negative beyond rounding, or multiplicities that do not fit.
    """
    values = float64("eigenvalues", eigenvalues)
    if values.ndim == 0 or values.numel() == 0:
        raise ValueError(f"eigenvalues must be [..., modes] with at least one mode, not {list(values.shape)}.")
    lowest, allowed = values.amin(-1), -ROUNDING * values.amax(-1)
    if bool((lowest < allowed.clamp_max(0)).any()):
        raise ValueError(
            f"eigenvalues must be at least 0, not {float(lowest.min()):.6g} "
            f"(down to -{ROUNDING:g} of the largest is taken for rounding and clipped)."
        )
    values = torch.where(values > 0, values, 0.0)
    if multiplicities is None:
        return values, None
    multiplicity = above_zero("multiplicities", multiplicities, values.device)
    if multiplicity.shape not in (values.shape, values.shape[-1:]):
        raise ValueError(
            f"multiplicities must have the shape of the eigenvalues, {list(values.shape)}, or one entry a mode, "
            f"not {list(multiplicity.shape)}."
        )
    return values, multiplicity


def power(value: Any, eigenvalues: Tensor, name: str = "target_power") -> Tensor:
    """Squared coefficients [..., modes], as many modes as the eigenvalues have."""
    return per_mode(name, at_least_zero(name, value, eigenvalues.device), eigenvalues)


def per_mode(name: str, value: Tensor, eigenvalues: Tensor) -> Tensor:
    """`value` itself, checked to have one entry a mode."""
    modes = eigenvalues.shape[-1]
    if value.ndim == 0 or value.shape[-1] != modes:
        raise ValueError(
            f"{name} must be [..., modes] with modes = {modes} as in the spectrum, not {list(value.shape)}."
        )
    return value


def broadcast(**shapes: torch.Size) -> torch.Size:
    """The common batch shape of the named ones.

    Raises:
        ValueError: they do not broadcast.
    """
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"The batch shapes must broadcast against each other, not {described}.") from None
