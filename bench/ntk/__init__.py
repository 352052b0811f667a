"""The empirical neural tangent kernel of any module: the instrument that the whole suite reads."""

from bench.ntk.empirical import as_operator, empirical_ntk, explain, write_ntk
from bench.ntk.method import Method

__all__ = ["Method", "as_operator", "empirical_ntk", "explain", "write_ntk"]
