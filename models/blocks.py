"""The one place that tiles a kernel: fills an n1 x n2 matrix by row strips within a byte budget.

Row strips are the outer loop, so that a tile function may keep what it computed for the rows of the strip
(features, Jacobians) while the columns pass by. In the symmetric case each strip starts at its diagonal and the rest
is mirrored; eight strips do .56 of the work. When memory runs out the tile is halved and the work goes on. Long work
says how far it is and when it will be done.

Tile sides come from repeated halving, so that the same machine with a little more or less free memory almost always
cuts the same tiles and rounds alike.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from models.tile_file import TileFile

log = logging.getLogger(__name__)

T = TypeVar("T")
Tensors = Tensor | tuple[Tensor, ...]
TileFn = Callable[[slice, slice], Tensors]

USABLE = 0.8  # of the memory that is free: the rest is for other processes and fragmentation
LEAST = 64 * 2**20  # bytes that the default budget never goes below
UNKNOWN = 2 * 2**30  # bytes assumed free where the system does not say
SYMMETRIC_STRIPS = 8
SMALL_SIDE = 32  # rows below which more strips cost more calls than they save work
TALL = 8  # rows for each column of a tile whose rows are kept while the columns pass by
SECONDS = 10.0  # between two messages of how far a kernel is, and before the first


def fill(
    out: Tensors,
    tile_fn: TileFn,
    *,
    bytes_per_entry: float,
    bytes_per_row: float = 0.0,
    symmetric: bool = False,
    memory: int | None = None,
    max_side: int | None = None,
    least_side: int = SMALL_SIDE,
    strips: int = SYMMETRIC_STRIPS,
    tall: bool = False,
    add: bool = False,
    mirror: bool = True,
    begin: Callable[[slice], object] | None = None,
    done: TileFile | None = None,
    name: str = "Kernel",
) -> None:
    """Fill `out` [n1, n2, ...] (or several such tensors at once) with `tile_fn(rows, cols)`.

    `tile_fn` returns a tensor [rows, cols, ...] (or a tuple of them, in the order of `out`) for two slices with
    explicit ends. A tile of r x c is taken to need `bytes_per_entry * r * c + bytes_per_row * (r + c)` bytes at its
    peak, and is kept within `memory` bytes (None: the memory now free on the first output's device, less a margin
    and `out` itself) and `max_side` rows and columns; the symmetric case is cut into `strips`, but for strips of less
    than `least_side` rows, which cost more than they save. `tall`: `tile_fn` makes what it needs of the rows and
    columns and keeps that of a strip, so that few and tall strips make less of it twice. `begin` is called with each
    strip's rows before its tiles: what is made there, unlike what a tile makes, does not depend on which tiles are left
    to do. `add`: to what `out` holds; `mirror`: False leaves what is below the diagonal of a symmetric kernel to a
    later call that adds to it.
    `done`: the file behind `out`, whose finished tiles are not computed again. `name`: of the work, in its messages.
    Symmetric tiles on the diagonal start there (rows.start == cols.start, at least as many columns as rows); entries
    [i, j, a, b] are mirrored to [j, i, b, a].
    Raises ValueError when sizes do not fit or `memory` is too small for a single entry; a tile function that runs out
    of memory on a single entry raises what it raised.
    """
    outs = out if isinstance(out, tuple) else (out,)
    n1, n2 = _size(outs, symmetric)
    most = budget(memory, outs)

    def cost(r: int, c: int) -> float:
        return bytes_per_entry * r * c + bytes_per_row * (r + c)

    if memory is not None and cost(1, 1) > most:
        raise ValueError(f"memory must be at least {math.ceil(cost(1, 1))} bytes, for one entry, not {memory}.")
    shape = tile_shape(n1, n2, cost, most, symmetric, max_side, least_side, strips, tall)
    if done is not None:
        high, wide = done.settle("grid", list(shape))
        shape = high, wide
    left = [tile for tile in tiles(n1, n2, *shape, symmetric) if done is None or not done.holds(*tile)]
    progress = Progress(name, "pairs", sum(_pairs(*tile, symmetric) for tile in left))
    worker = _Worker(outs, tile_fn, cost, symmetric, add, mirror)
    strip = None
    for rows, cols in left:
        top = rows.start // shape[0] * shape[0]
        if begin is not None and top != strip:
            begin(slice(top, min(top + shape[0], n1)))
            strip = top
        worker.do(rows, cols)
        if done is not None:
            done.add(rows, cols)
        progress.add(_pairs(rows, cols, symmetric))


class Progress:
    """Logs which share of `total` items of work is done and the time to go, every SECONDS at most."""

    def __init__(self, name: str, items: str, total: int) -> None:
        self.name, self.items, self.total = name, items, total
        self.done = 0
        self.start = self.last = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= SECONDS and self.done < self.total:
            self.last = now
            left = (now - self.start) * (self.total - self.done) / self.done
            share = 100 * self.done / self.total
            log.info("%s: %.0f %% of %d %s, about %.0f s to go.", self.name, share, self.total, self.items, left)


def tile_shape(
    n1: int,
    n2: int,
    cost: Callable[[int, int], float],
    budget: float,
    symmetric: bool = False,
    max_side: int | None = None,
    least_side: int = SMALL_SIDE,
    strips: int = SYMMETRIC_STRIPS,
    tall: bool = False,
) -> tuple[int, int]:
    """Rows and columns of a tile of at most `budget` bytes; symmetric tiles that are not tall have no more rows than
    columns."""
    rows, cols = n1, n2
    if max_side is not None:
        rows, cols = min(rows, max_side), min(cols, max_side)
    if symmetric:
        short = max(least_side, math.ceil(n1 / strips))
        rows, cols = (rows, min(cols, short)) if tall else (min(rows, short), cols)
    while cost(rows, cols) > budget and (rows, cols) != (1, 1):
        if cols > 1 and (TALL * cols > rows if tall else cols >= rows):
            cols = math.ceil(cols / 2)
        else:
            rows = math.ceil(rows / 2)
        if symmetric and not tall:
            rows = min(rows, cols)
    return _even(n1, rows), _even(n2, cols)


def tiles(n1: int, n2: int, rows: int, cols: int, symmetric: bool = False) -> Iterator[tuple[slice, slice]]:
    """The tiles of an n1 x n2 matrix, strip by strip; symmetric: from the diagonal on, where a strip of more rows than
    columns is cut into low ones."""
    for top in range(0, n1, rows):
        bottom, left = min(top + rows, n1), 0
        if symmetric and rows > cols:
            left = bottom
            for start in range(top, bottom, cols):
                yield slice(start, min(start + cols, bottom)), slice(start, bottom)
        elif symmetric:
            left = top
        for start in range(left, n2, cols):
            yield slice(top, bottom), slice(start, min(start + cols, n2))


def chunks(n: int, size: int, compute: Callable[[slice], T], name: str = "Pass") -> Iterator[tuple[slice, T]]:
    """`compute(part)` of consecutive parts of n samples, `size` or fewer at a time; out of memory halves them.
    `name`: of the work, in its messages.

    Raises what `compute` raises on a single sample.
    """
    start, size = 0, _even(n, min(n, size))
    halved, progress = False, Progress(name, "samples", n)
    while start < n:
        part = slice(start, min(start + size, n))
        failed = False
        try:
            result = compute(part)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or _len(part) == 1:
                raise
            failed = True
        if failed:  # outside the except clause: there the traceback would keep the failed part's tensors alive
            size = math.ceil(_len(part) / 2)
            if not halved:
                log.warning("Out of memory with %d samples at once: going on with half.", _len(part))
            halved = True
            continue
        yield part, result
        start = part.stop
        progress.add(_len(part))


class _Worker:
    """Computes tiles into the outputs, and remembers the tile size at which memory ran out."""

    def __init__(
        self, outs: tuple[Tensor, ...], tile_fn: TileFn, cost: Callable[[int, int], float], symmetric: bool, add: bool,
        mirror: bool,
    ) -> None:  # fmt: skip
        self.outs = outs
        self.tile_fn = tile_fn
        self.cost = cost
        self.symmetric = symmetric
        self.write = Tensor.add_ if add else Tensor.copy_
        self.mirror = mirror
        self.limit = math.inf

    def do(self, rows: slice, cols: slice) -> None:
        cost = self.cost(_len(rows), _len(cols))
        entries = _len(rows) * _len(cols)
        if cost <= self.limit or entries == 1:
            try:
                self._write(rows, cols, self.tile_fn(rows, cols))
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or entries == 1:
                    raise
            self._halve(rows, cols, cost)
        # Outside the except clause: there the traceback would keep the failed tile's tensors alive.
        for part in self._split(rows, cols):
            self.do(*part)

    def _halve(self, rows: slice, cols: slice, cost: float) -> None:
        if self.limit == math.inf:
            log.warning("Out of memory with a tile of %d x %d: going on with half.", _len(rows), _len(cols))
        self.limit = cost / 2

    def _split(self, rows: slice, cols: slice) -> list[tuple[slice, slice]]:
        """Two halves along the longer side; on the diagonal both start there again."""
        diagonal = self.symmetric and rows.start == cols.start
        if _len(rows) < _len(cols) or (_len(rows) == _len(cols) and not diagonal):
            middle = (cols.start + cols.stop) // 2
            middle = max(middle, rows.stop) if diagonal else middle
            return [(rows, slice(cols.start, middle)), (rows, slice(middle, cols.stop))]
        middle = (rows.start + rows.stop) // 2
        below = slice(middle, cols.stop) if diagonal else cols
        return [(slice(rows.start, middle), cols), (slice(middle, rows.stop), below)]

    def _write(self, rows: slice, cols: slice, tile: Tensors) -> None:
        parts = tile if isinstance(tile, tuple) else (tile,)
        if len(parts) != len(self.outs):
            raise ValueError(f"tile_fn must return {len(self.outs)} tensors, one an output, not {len(parts)}.")
        for out, part in zip(self.outs, parts, strict=True):
            target = out[rows, cols]
            if part.shape != target.shape:
                raise ValueError(f"tile_fn must return shape {list(target.shape)} here, not {list(part.shape)}.")
            if self.symmetric:
                self._write_symmetric(out, rows, cols, part)
            else:
                self.write(target, part)

    def _write_symmetric(self, out: Tensor, rows: slice, cols: slice, tile: Tensor) -> None:
        beyond = cols.start
        if rows.start == cols.start:
            beyond = rows.stop
            square = tile[:, : _len(rows)]
            # A product of a matrix with itself need not round symmetrically.
            self.write(out[rows, rows], (square + _mirror(square)) / 2)
            tile = tile[:, _len(rows) :]
        above = out[rows, beyond : cols.stop]
        self.write(above, tile)
        if self.mirror:
            out[beyond : cols.stop, rows] = _mirror(above)


def _pairs(rows: slice, cols: slice, symmetric: bool) -> int:
    """Of a tile; those that mirror each other count once."""
    n = _len(rows)
    return n * _len(cols) - (n * (n - 1) // 2 if symmetric and rows.start == cols.start else 0)


def _mirror(tile: Tensor) -> Tensor:
    flipped = tile.transpose(0, 1)
    return flipped.transpose(2, 3) if tile.ndim == 4 else flipped


def _len(side: slice) -> int:
    return int(side.stop - side.start)


def _even(n: int, side: int) -> int:
    """The side that cuts n into as many, but equal, pieces."""
    return math.ceil(n / math.ceil(n / side)) if n else 1


def _size(outs: tuple[Tensor, ...], symmetric: bool) -> tuple[int, int]:
    n1, n2 = outs[0].shape[:2]
    if any(out.shape[:2] != (n1, n2) for out in outs):
        raise ValueError(f"out must be tensors of equal rows and columns, not {[list(out.shape) for out in outs]}.")
    if symmetric and n1 != n2:
        raise ValueError(f"symmetric needs as many rows as columns, not {n1} x {n2}.")
    return n1, n2


def out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in ("can't allocate memory", "not enough memory", "out of memory"))


def budget(memory: int | None, outs: tuple[Tensor, ...]) -> float:
    """Bytes to work with: `memory`, or what is free on the first output's device, less a margin and the outputs."""
    if memory is None:
        # A fresh output is free memory to the system until it is written.
        return max(LEAST, USABLE * free_memory(outs[0].device) - sum(out.nbytes for out in outs))
    if not isinstance(memory, int | float) or not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes, or None for what is free, not {memory!r}.")
    return memory


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`: of a GPU, or of this machine and the control group that the process runs in."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = _table(Path("/proc/meminfo")).get("MemAvailable:")
    free = UNKNOWN if available is None else available * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None:
        free = min(free, limit - used + _table(group / "memory.stat").get("inactive_file", 0))
    return max(free, 0)


def _table(path: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
