"""The kernel, tile by tile within a byte budget, from what ``layers`` keeps of its rows and columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.ntk.forms import Kept, add_gram
from bench.ntk.layers import Layers, layers
from bench.ntk.plan import Plan, Request
from bench.ntk.rules import Dense, Elementwise
from models import blocks

CACHE = 2**25
"""Bytes of activations that one pass of a CPU should not exceed: beyond, larger batches only cost memory."""
WHOLE = 0.8
"""Of the budget may be kept of all samples at once; else tiles compute theirs again."""
TOGETHER = 3e8
"""FLOPs of a member above which members are faster one by one on a CPU."""
WORKSPACE = 2**24
"""Bytes of pairs of positions that are alive at once: they are summed while in the cache."""
STRIP = 128
"""Rows, of all outputs, below which a strip of the symmetric kernel is slower than it saves work."""


@dataclass(frozen=True)
class Kernel:
    """A kernel to be computed: between x1 and x2 (None: x1), by a plan, within ``memory`` bytes (None: the free)."""

    request: Request
    plan: Plan
    x1: Tensor
    x2: Tensor | None
    by_layer: bool
    memory: int | None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x1), len(self.x1 if self.x2 is None else self.x2)

    def empty(self) -> dict[str, Tensor]:
        """Module (or "") -> [m, n1, n2], or [m, n1, n2, c, c] in storage that is sample-major."""
        n1, n2 = self.shape
        shares: dict[str, Tensor] = {}
        for name in self.plan.modules if self.by_layer else [""]:
            if self.request.outputs == "full":
                c = self.plan.c
                store = self._new(self.request.members, n1, c, n2, c)
                shares[name] = store.transpose(2, 3)
            else:
                shares[name] = self._new(self.request.members, n1, n2)
        return shares

    def _new(self, *shape: int) -> Tensor:
        first = next(iter(self.request.params.values()))
        return torch.empty(shape, dtype=first.dtype, device=first.device)

    def compute(self) -> dict[str, Tensor]:
        if self._small():
            return self._at_once()
        self._check_room()
        shares = self.empty()
        budget = blocks.budget(self.memory, tuple(shares.values()))
        for members in self._groups(budget):
            self._fill(tuple(share[member] for share in shares.values() for member in members), members, budget)
        return shares

    def _check_room(self) -> None:
        c = self.plan.c if self.plan.full else 1
        item = next(iter(self.request.params.values())).element_size()
        count = self.request.members * (len(self.plan.modules) if self.by_layer else 1)
        need, free = count * math.prod(self.shape) * c**2 * item, blocks.free_memory(self.x1.device)
        if need > free and self.x1.device.type != "meta":
            raise ValueError(
                f"The kernel takes {need / 1e9:.3g} GB and {free / 1e9:.3g} GB are free: write it to disk with "
                "write_ntk, or work with products alone (as_operator)."
            )

    def _small(self) -> bool:
        """One tile for all members, far below any budget: to ask the system and to cut tiles would take longer."""
        c = self.plan.c if self.plan.full else 1
        samples, members = sum(self.shape), self.request.members
        item = next(iter(self.request.params.values())).element_size()
        numbers = members * math.prod(self.shape) * (self._alive() + len(self.plan.modules) * c**2)
        need = 4 * members * samples * self._pass() + item * numbers
        one_tile = self.memory is None and len(self.x1) * c <= 2 * STRIP and need < blocks.LEAST
        return one_tile and len(self._groups(blocks.LEAST)) == 1

    def _at_once(self) -> dict[str, Tensor]:
        members = range(self.request.members)
        one = layers(self.request, self.plan, members, self.x1)
        two = one if self.x2 is None else layers(self.request, self.plan, members, self.x2)
        matrices = self._matrices(one, two, len(members), WORKSPACE)
        if self.x2 is None:  # a product of a matrix with itself need not round symmetrically
            matrices = {name: (matrix + matrix.mT) / 2 for name, matrix in matrices.items()}
        if self.request.outputs != "full":
            return matrices
        (n1, n2), c = self.shape, self.plan.c
        return {name: matrix.view(-1, n1, c, n2, c).transpose(2, 3) for name, matrix in matrices.items()}

    def _groups(self, budget: float) -> list[list[int]]:
        """Members that pass together: of a network of single-position layers all, where its calls are what costs."""
        count, plan = self.request.members, self.plan
        light = not plan.sampled and all(_light(call.rule, call.x, call.out) for call in plan.calls)
        small = self.x1.device.type != "cpu" or plan.flops / count <= TOGETHER
        fits = count * sum(self.shape) * (plan.activations + plan.bytes_per_sample) <= budget / 2
        return [list(range(count))] if light and small and fits else [[member] for member in range(count)]

    def chunk(self, members: int, budget: float) -> int:
        """Samples of one pass of so many members, a quarter of the budget."""
        most = budget / 4 if self.x1.device.type != "cpu" else min(budget / 4, CACHE)
        return max(1, int(most / (members * self._pass())))

    def _pass(self) -> float:
        """Bytes of one sample while it passes, and of what is made of it before it is put in its place."""
        return max(1.0, self.plan.activations + self.plan.bytes_per_sample)

    def write(self, path: Path) -> Tensor:
        """Into a file, tile by tile; what an earlier, interrupted call has written there is kept."""
        n1, n2 = self.shape
        full, c = self.request.outputs == "full", self.plan.c
        dtype = next(iter(self.request.params.values())).dtype
        file = blocks.File(path, (n1, c, n2, c) if full else (n1, n2), dtype, self._fingerprint())
        out = file.tensor.transpose(1, 2) if full else file.tensor
        if not file.complete:
            self._fill((out,), [0], blocks.budget(self.memory, (self.x1[:0],)), file)
            file.finish()
        return out

    def _fingerprint(self) -> str:
        """Of all that decides the kernel."""
        digest = hashlib.sha256(f"{self.request.outputs} {self.request.trained} {self.request.net}".encode())
        two = {} if self.x2 is None else {"x2": self.x2}
        for name, tensor in {**self.request.params, **self.request.buffers, "x1": self.x1, **two}.items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _fill(
        self, outs: tuple[Tensor, ...], members: Sequence[int], budget: float, done: blocks.File | None = None
    ) -> None:
        n1, n2 = self.shape
        c = self.plan.c if self.plan.full else 1
        parameters = sum(parameter[0].nbytes for parameter in self.request.params.values())  # their multiples
        side = len(members) * self.plan.bytes_per_sample
        entry = len(members) * outs[0].element_size() * self._alive()
        pair = entry + 2 * side
        spare = budget - len(members) * parameters - 8 / 7 * pair
        if self.memory is not None and spare < len(members) * self._pass():
            least = budget - spare + len(members) * self._pass()
            raise ValueError(f"memory must be at least {int(least)} bytes, for one pair of samples, not {self.memory}.")
        chunk = max(1, min(self.chunk(len(members), budget), int(spare / (len(members) * self._pass()))))
        left = budget - len(members) * (chunk * self._pass() + parameters)
        workspace = min(WORKSPACE, left / 8)
        left -= workspace
        one = _Side(self, members, self.x1, chunk)
        two = one if self.x2 is None else _Side(self, members, self.x2, chunk)
        kept = side * (n1 + (0 if two is one else n2))
        whole = kept <= WHOLE * left and one.keep_all() and two.keep_all()
        blocks.fill(
            outs,
            lambda rows, cols: self._tile(one.rows(rows), two.columns(cols), len(members), workspace),
            bytes_per_entry=entry,
            bytes_per_row=0.0 if whole else side,
            symmetric=self.x2 is None,
            memory=math.ceil(max(left - (kept if whole else 0.0), pair)),
            least_side=-(-STRIP // c),
            done=done,
        )

    def _alive(self) -> float:
        """Numbers alive for each pair of samples: shares, a Gram of inputs and one of output gradients."""
        kernel = self.plan.c**2 if self.plan.full else 1
        count = len(self.plan.modules) if self.by_layer else 1
        return kernel * (count + 2) + 1

    def _tile(self, left: Layers, right: Layers, members: int, workspace: float) -> tuple[Tensor, ...]:
        tiles = self._matrices(left, right, members, workspace)
        c = self.plan.c if self.plan.full else 1
        n1, n2 = _samples(left), _samples(right)
        if self.request.outputs != "full":
            return tuple(tile[i] for tile in tiles.values() for i in range(members))
        return tuple(tile[i].view(n1, c, n2, c).transpose(1, 2) for tile in tiles.values() for i in range(members))

    def _matrices(self, left: Layers, right: Layers, members: int, workspace: float) -> dict[str, Tensor]:
        """Module (or "") -> [m, n1 c, n2 c] of all pairs of outputs, else [m, n1, n2]."""
        c = self.plan.c if self.plan.full else 1
        (n1, n2), first = (_samples(left), _samples(right)), left[0][0].tensors()[-1]
        tiles: dict[str, Tensor] = {}
        for part, ones, twos in zip(self.plan.parts, left, right, strict=True):
            name = part.module if self.by_layer else ""
            if name not in tiles:
                tiles[name] = first.new_zeros(members, n1 * c, n2 * c)
            for one, two in zip(ones, twos, strict=True):
                add_gram(tiles[name], one, two, self.plan.full, workspace)
        return tiles


class _Side:
    """What is kept of the samples of one side: of all of them, or of the rows at hand."""

    def __init__(self, kernel: Kernel, members: Sequence[int], x: Tensor, chunk: int) -> None:
        self.kernel = kernel
        self.members = members
        self.x = x
        self.chunk = chunk
        self.all: Layers | None = None
        self._latest: tuple[slice, Layers] | None = None

    def keep_all(self) -> bool:
        """False: there was not the memory for it."""
        if self.all is None:
            try:
                self.all = self._compute(slice(0, len(self.x)))
            except (RuntimeError, MemoryError) as error:
                if not blocks.out_of_memory(error) or len(self.x) == 1:
                    raise
                blocks.log.warning("Out of memory with the layers of %d samples: going on tile by tile.", len(self.x))
        return self.all is not None

    def rows(self, rows: slice) -> Layers:
        """Kept while the columns pass by."""
        if self.all is None:
            if self._latest is None or self._latest[0] != rows:
                self._latest = None  # free it before its successor is made
                self._latest = rows, self._compute(rows)
            return self._latest[1]
        return _select(self.all, rows)

    def columns(self, columns: slice) -> Layers:
        return self._compute(columns) if self.all is None else _select(self.all, columns)

    def _compute(self, rows: slice) -> Layers:
        kernel = self.kernel

        def some(part: slice, into: Layers | None) -> Layers:
            x = self.x[rows.start + part.start : rows.start + part.stop]
            return layers(kernel.request, kernel.plan, self.members, x, into)

        return _gather(rows.stop - rows.start, self.chunk, some)


def _gather(n: int, chunk: int, some: Callable[[slice, Layers | None], Layers]) -> Layers:
    """Layers of n samples, ``chunk`` at a time, written into their place at once."""
    whole: Layers | None = None

    def placed(part: slice) -> Layers:
        return some(part, None if whole is None else _select(whole, part))

    for part, found in blocks.chunks(n, chunk, placed):
        if part == slice(0, n):
            return found
        if whole is None:
            whole = [[_like(piece, n) for piece in pieces] for pieces in found]
        for ones, pieces in zip(whole, found, strict=True):
            for one, piece in zip(ones, pieces, strict=True):
                for target, tensor in zip(one.rows(part).tensors(), piece.tensors(), strict=True):
                    if target.data_ptr() != tensor.data_ptr():
                        target.copy_(tensor)
    assert whole is not None
    return whole


def _like(piece: Kept, n: int) -> Kept:
    tensors = [tensor.new_empty(tensor.shape[0], n, *tensor.shape[2:]) for tensor in piece.tensors()]
    return piece.holding(*tensors)


def _select(layers: Layers, rows: slice) -> Layers:
    return [[piece.rows(rows) for piece in pieces] for pieces in layers]


def _samples(layers: Layers) -> int:
    return layers[0][0].tensors()[0].shape[1]


def _light(rule: object, x: Tensor, out: torch.Size) -> bool:
    return isinstance(rule, Elementwise) or (isinstance(rule, Dense) and x.ndim == 2)
