"""The empirical neural tangent kernel of any module: the instrument that the whole suite reads.

In the order of the calls:
    empirical  arguments -> a ``Request``; then a plan, and the kernel by tiles, or an ``NtkOperator`` (operator.py)
    plan       a few samples pass under watch.py, rules.py says which layer each call is; counted FLOPs choose the form
    tiles      ``Kernel``: cuts the kernel and its layers (passes.py) to the budget, fills tiles, in memory or in a file
    layers     for a batch of samples: forward and backward passes, watched; jacobian.py where no rule knows a parameter
    forms      two sides' layers -> their share of a tile (``gram``), by products.py where oneDNN multiplies faster
    algebra    what is done with a kernel or operator afterwards: solves and spectra
"""

from bench.ntk.empirical import as_operator, empirical_ntk, explain, write_ntk
from bench.ntk.method import Method

__all__ = ["Method", "as_operator", "empirical_ntk", "explain", "write_ntk"]
