"""Comparison modules: how well each predictor matches the trained network."""

from bench.compare.aligned import Alignment
from bench.compare.comparison import Comparison, UnavailableError, unfinished
from bench.compare.eigenlearning import EigenlearningTheory
from bench.compare.exact import Exact
from bench.compare.flows import Flows
from bench.compare.kernels import Empirical, InfiniteWidth
from bench.compare.linear import Features, Linearised
from bench.compare.margin import Margin
from bench.compare.motion import Motion, Networks
from bench.compare.rivals import Rivals
from bench.compare.trajectory import Trajectory

__all__ = [
    "Alignment", "Comparison", "EigenlearningTheory", "Empirical", "Exact", "Features", "Flows", "InfiniteWidth",
    "Linearised", "Margin", "Motion", "Networks", "Rivals", "Trajectory", "UnavailableError", "unfinished",
]  # fmt: skip
