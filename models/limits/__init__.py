"""Infinite-width limits (NNGP and NTK) of networks, derived from the module: `infinite_width(net)(x1, x2)`."""

# The rules register themselves on import.
from models.limits import closed_forms as _closed_forms
from models.limits import normalisation as _normalisation
from models.limits import pooling as _pooling
from models.limits import structural as _structural
from models.limits.check import Check, check_rule
from models.limits.elementwise import elementwise, elementwise_function
from models.limits.infinite import InfiniteWidth, Limit, infinite_width
from models.limits.registry import function_rule, rule
from models.limits.state import Kernels, NoInfiniteWidthLimit

__all__ = [
    "Check",
    "InfiniteWidth",
    "Kernels",
    "Limit",
    "NoInfiniteWidthLimit",
    "check_rule",
    "elementwise",
    "elementwise_function",
    "function_rule",
    "infinite_width",
    "rule",
]

del _closed_forms, _normalisation, _pooling, _structural
