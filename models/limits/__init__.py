"""Infinite-width limits (NNGP and NTK) of networks, derived from the module: `infinite_width(net)(x1, x2)`.

In the order of the calls:
    trace     `Program`: torch.fx's nodes, sorted; layers and functions find their rules in registry.py
    graph     the `Step`s that they become, with sums and streams that are (un)correlated, and what each step needs
    walk      `Walk`, of one call: features of the inputs (features.py), kernels of each input with itself (own.py)
    infinite  measures one pair, asks engines.py, cuts the kernel into tiles by the budget, in memory or in a file
    engines   None: each tile is walked step by step; or, for a chain (chain.py, dense.py), compiled.py, triton_chain.py
    tiles     the compiled loops over a tile of a chain (triton_tiles.py: on a GPU); rules are not called there
"""

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
