"""The largest modes of the Hermite eigenstructure ansatz: products of powers, enumerated from the largest on."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

Mode = tuple[int, ...]
"""Dimensions of a monomial in falling order, repeated by their powers: (2, 0, 0) is x_0^2 x_2, () the constant."""


def largest_modes(variances: Sequence[float], coefficients: Sequence[float], modes: int) -> list[tuple[float, Mode]]:
    """The `modes` largest of c_|a| prod_i gamma_i^a_i with their monomials a, from the largest on, each once.

    Best first: within a degree, raising one factor to the next smaller variance never makes a product larger, and every
    monomial is reached so from the power of the largest variance alone.

    Args:
        variances: gamma, falling; those that are 0 take no part.
        coefficients: c_0, c_1, ...; degrees whose c is 0 take no part.
        modes: how many; fewer are returned where no more exist.
    """
    logs = [math.log(variance) for variance in variances if variance > 0]
    starts = [(math.log(c), degree) for degree, c in enumerate(coefficients) if c > 0 and (logs or not degree)]
    queue = [(-(log_c + degree * logs[0] if degree else log_c), (0,) * degree) for log_c, degree in starts]
    offsets = {degree: log_c for log_c, degree in starts}
    heapq.heapify(queue)
    seen = {mode for _, mode in queue}
    found: list[tuple[float, Mode]] = []
    while queue and len(found) < modes:
        negative, mode = heapq.heappop(queue)
        found.append((math.exp(-negative), mode))
        for place, dimension in enumerate(mode):
            # Falling order stays if the first of a run of equal dimensions is raised.
            if dimension + 1 == len(logs) or (place and mode[place - 1] == dimension):
                continue
            child = (*mode[:place], dimension + 1, *mode[place + 1 :])
            if child not in seen:
                seen.add(child)
                heapq.heappush(queue, (-(offsets[len(mode)] + sum(logs[i] for i in child)), child))
    return found
