"""Comparison modules: how well each predictor matches the trained network."""

from bench.compare.comparison import Comparison, UnavailableError
from bench.compare.kernels import Empirical, InfiniteWidth
from bench.compare.motion import Motion, Networks
from bench.compare.rivals import Rivals

__all__ = ["Comparison", "Empirical", "InfiniteWidth", "Motion", "Networks", "Rivals", "UnavailableError"]
