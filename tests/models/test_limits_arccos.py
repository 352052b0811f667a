"""The compiled loops' arccos(a) / sqrt(1 - a), against numpy's from the half angle."""

import math

import numpy as np
import pytest
from numba import njit

from models.limits.tiles import arccos_over_root


@njit
def compiled(a):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    return arccos_over_root(a)


@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 4e-14), (np.float32, 2e-7)])
def test_it_is_exact_to_rounding(dtype: type, error: float) -> None:
    """float64: 23 coefficients, each with rounding of up to 4e-15; float32: the formula's 2e-8, and rounding."""
    for a in np.concatenate([np.linspace(0, 1, 400)[:-1], 1 - np.logspace(-15, -3, 20)]):
        exact = 2 * math.asin(math.sqrt((1 - a) / 2)) / math.sqrt(1 - a)
        assert abs(compiled(dtype(a)) - exact) < error
    assert abs(compiled(dtype(1)) - math.sqrt(2)) < error
