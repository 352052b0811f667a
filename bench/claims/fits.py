"""Fits that claims make, one a seed."""

from __future__ import annotations

import numpy as np


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of log y against log x, one a row.

    Args:
        x: [k], positive.
        y: [seeds, k], positive.
    """
    t = np.log(np.asarray(x, dtype=np.float64))
    t = t - t.mean()
    return np.log(y) @ t / (t @ t)
