"""Says how far a long kernel is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torch import Tensor

log = logging.getLogger(__name__)

SECONDS = 10.0  # between two messages, and before the first


class Progress:
    """A tile function that logs the share done and the time to go, every SECONDS at most."""

    def __init__(self, tile: Callable[[slice, slice], tuple[Tensor, Tensor]], total: int, symmetric: bool) -> None:
        self.tile, self.total, self.symmetric = tile, total, symmetric
        self.done = 0
        self.start = self.last = time.monotonic()

    def __call__(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        result = self.tile(rows, cols)
        n, m = rows.stop - rows.start, cols.stop - cols.start
        below = n * (n - 1) // 2 if self.symmetric and rows.start == cols.start else 0
        self.done += n * m - below
        now = time.monotonic()
        if now - self.last >= SECONDS and self.done < self.total:
            self.last = now
            left = (now - self.start) * (self.total - self.done) / self.done
            share = 100 * self.done / self.total
            log.info("Infinite-width kernels: %.0f %% of %d pairs, about %.0f s to go.", share, self.total, left)
        return result
