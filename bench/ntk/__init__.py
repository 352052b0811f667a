"""The empirical neural tangent kernel of any module: the instrument that the whole suite reads."""

from bench.ntk.empirical import empirical_ntk, explain

__all__ = ["empirical_ntk", "explain"]
