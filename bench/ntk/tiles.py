"""The kernel, tile by tile within a byte budget, from what ``layers`` keeps of its rows and columns."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.ntk.forms import Kept, gram
from bench.ntk.layers import Layers, layers
from bench.ntk.passes import passes
from bench.ntk.plan import Plan, Request, is_nested
from bench.ntk.rules import Dense, Elementwise
from models import blocks
from models.tile_file import TileFile

CACHE = 2**26
"""Bytes of activations that one pass of a CPU should not exceed: beyond, larger batches only cost memory."""
WHOLE = 0.8
"""Of the budget may be kept of all samples at once; else tiles compute theirs again."""
TOGETHER = 3e8
"""FLOPs of a member above which members are faster one by one on a CPU."""
WORKSPACE = 2**24
"""Bytes of pairs of positions that are alive at once: they are summed while in the cache."""
STRIP = 128
"""Rows, of all outputs, below which a strip of the symmetric kernel is slower than it saves work."""
STRIPS = 16
"""Of the symmetric kernel, where they are no less than that."""
TILE = 2**23
"""Bytes of a tile, or a quarter of the kernel, above which it is no faster."""


@dataclass(frozen=True)
class Kernel:
    """A kernel to be computed: between x1 and x2 (None: x1), by a plan, within ``memory`` bytes (None: the free)."""

    request: Request
    plan: Plan
    x1: Tensor
    x2: Tensor | None
    by_layer: bool
    memory: int | None

    @functools.cached_property
    def nested(self) -> bool:
        return is_nested(self.x1, self.x2)

    @property
    def samples(self) -> int:
        """That pass."""
        return len(self.x1) if self.x2 is None or self.nested else sum(self.shape)

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
            self._fill(shares, members, budget)
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
        if self.nested:
            two = _select(one, slice(0, self.shape[1]))
        else:
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
        layers(self.request, self.plan, [0], self.x1[:2])  # rules that do not hold are found before a file is begun
        with TileFile(path, (n1, c, n2, c) if full else (n1, n2), dtype, self._fingerprint()) as file:
            out = file.tensor.transpose(1, 2) if full else file.tensor
            if not file.complete:
                self._fill({"": out[None]}, [0], self._settled(file), file)
                file.finish()
        return out

    def _settled(self, file: TileFile) -> float:
        """The budget that the file was begun with: all that decides how its tiles round follows from it."""
        budget = file.settle("memory", blocks.budget(self.memory, (self.x1[:0],)))
        if self.memory is not None and self.memory < budget:
            raise ValueError(
                f"memory must be at least {int(budget)} bytes, with which {file.path} was begun, not {self.memory}."
            )
        return budget

    def _fingerprint(self) -> str:
        """Of all that decides the kernel."""
        digest = hashlib.sha256(f"{self.request.outputs} {self.request.trained} {self.request.net}".encode())
        two = {} if self.x2 is None else {"x2": self.x2}
        for name, tensor in {**self.request.params, **self.request.buffers, "x1": self.x1, **two}.items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _fill(
        self, shares: dict[str, Tensor], members: Sequence[int], budget: float, done: TileFile | None = None
    ) -> None:
        """``shares``: module (or "") -> [m, n1, n2, ...] of all members."""
        room = self._room(len(members), budget)
        samples = self.samples
        again = self._again(len(members) * self.plan.bytes_per_sample, room.left)
        split = None if done is not None else passes(self.plan, samples, WHOLE * room.left / len(members), again)
        split = [self.plan] if split is None else split
        if self.by_layer and len(split) > 1:  # a module's weight and bias may be in different passes
            for share in shares.values():
                share[list(members)] = 0
        for i, plan in enumerate(split):
            modules = plan.modules if self.by_layer else [""]
            outs = tuple(shares[module][member] for module in modules for member in members)
            add = i > 0 or (self.by_layer and len(split) > 1)
            name = "Empirical NTK" if len(split) == 1 else f"Empirical NTK, pass {i + 1} of {len(split)}"
            mirror = self.by_layer or i == len(split) - 1
            replace(self, plan=plan)._pass_and_fill(outs, members, budget, add, mirror, done, name)

    def _pass_and_fill(
        self, outs: tuple[Tensor, ...], members: Sequence[int], budget: float, add: bool, mirror: bool,
        done: TileFile | None, name: str,
    ) -> None:  # fmt: skip
        room = self._room(len(members), budget)
        c = self.plan.c if self.plan.full else 1
        side = len(members) * self.plan.bytes_per_sample
        one = _Side(self, members, self.x1, room.chunk, name)
        two = one if self.x2 is None or self.nested else _Side(self, members, self.x2, room.chunk, name)
        kept = side * self.samples
        whole = kept <= WHOLE * room.left and one.keep_all() and (one is two or two.keep_all())
        most = room.left - kept if whole else room.left
        if whole:
            most = min(most, max(TILE, sum(out.nbytes for out in outs) / 4))
        blocks.fill(
            outs,
            lambda rows, cols: self._tile(one.layers(rows), two.layers(cols), len(members), room.workspace),
            bytes_per_entry=len(members) * outs[0].element_size() * self._alive(),
            bytes_per_row=0.0 if whole else side,
            symmetric=self.x2 is None,
            memory=math.ceil(max(most, room.pair)),
            least_side=-(-STRIP // c),
            strips=STRIPS,
            tall=not whole,
            add=add,
            mirror=mirror,
            begin=None if whole else one.keep,
            done=done,
            name=name,
        )

    def _room(self, members: int, budget: float) -> _Room:
        parameters = members * sum(parameter[0].nbytes for parameter in self.request.params.values())  # their multiples
        item = next(iter(self.request.params.values())).element_size()
        pair = members * (item * self._alive() + 2 * self.plan.bytes_per_sample)
        one_pass = members * self._pass()
        spare = budget - parameters - 8 / 7 * pair
        if self.memory is not None and spare < one_pass:
            least = int(budget - spare + one_pass)
            raise ValueError(f"memory must be at least {least} bytes, for one pair of samples, not {self.memory}.")
        chunk = max(1, min(self.chunk(members, budget), int(spare / one_pass)))
        left = budget - chunk * one_pass - parameters
        workspace = min(WORKSPACE, left / 8)
        return _Room(chunk, workspace, left - workspace, pair)

    def _again(self, side: float, left: float) -> float:
        """How often a sample passes, on average, where tall tiles make their layers anew."""
        n1, n2 = self.shape
        strips = math.ceil(n1 * side / max(0.8 * left, side))
        return (strips + 1) / 2 if self.x2 is None else (n1 + n2 * strips) / (n1 + n2)

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
        tiles: dict[str, Tensor] = {}
        for part, ones, twos in zip(self.plan.parts, left, right, strict=True):
            name = part.module if self.by_layer else ""
            for one, two in zip(ones, twos, strict=True):
                tiles[name] = gram(one, two, self.plan.full, workspace, tiles.get(name))
        return tiles


@dataclass(frozen=True)
class _Room:
    """``chunk``: samples of a pass; bytes: for pairs of positions; what is ``left`` for layers and tiles; what one pair
    of samples takes."""

    chunk: int
    workspace: float
    left: float
    pair: float


class _Side:
    """What is kept of the samples of one side: of all of them, or of a strip of rows and the latest columns."""

    def __init__(self, kernel: Kernel, members: Sequence[int], x: Tensor, chunk: int, name: str) -> None:
        self.kernel = kernel
        self.members = members
        self.x = x
        self.chunk = chunk
        self.name = name
        self._kept: tuple[slice, Layers] | None = None
        self._latest: tuple[slice, Layers] | None = None
        self._too_many = math.inf

    def keep(self, rows: slice) -> bool:
        """Make these rows' layers, and keep them until others are kept; False: there was not the memory for it."""
        self._kept = self._latest = None  # free them before their successor is made
        count = rows.stop - rows.start
        if count >= self._too_many:
            return False
        try:
            self._kept = rows, self._compute(rows)
        except (RuntimeError, MemoryError) as error:
            if not blocks.out_of_memory(error) or count == 1:
                raise
            if self._too_many == math.inf:
                blocks.log.warning("Out of memory with the layers of %d samples: going on with fewer.", count)
            self._too_many = count
        return self._kept is not None

    def keep_all(self) -> bool:
        return self.keep(slice(0, len(self.x)))

    def layers(self, part: slice) -> Layers:
        """Of what is kept where that holds all of the part; else made of just this part, and dropped for the next."""
        for made in (self._kept, self._latest):
            if made is not None and made[0].start <= part.start and part.stop <= made[0].stop:
                return _select(made[1], slice(part.start - made[0].start, part.stop - made[0].start))
        self._latest = None
        self._latest = part, self._compute(part)
        return self._latest[1]

    def _compute(self, rows: slice) -> Layers:
        kernel = self.kernel

        def some(part: slice, into: Layers | None) -> Layers:
            x = self.x[rows.start + part.start : rows.start + part.stop]
            return layers(kernel.request, kernel.plan, self.members, x, into)

        return _gather(rows.stop - rows.start, self.chunk, some, self.name)


def _gather(n: int, chunk: int, some: Callable[[slice, Layers | None], Layers], name: str) -> Layers:
    """Layers of n samples, ``chunk`` at a time, written into their place at once."""
    whole: Layers | None = None

    def placed(part: slice) -> Layers:
        return some(part, None if whole is None else _select(whole, part))

    for part, found in blocks.chunks(n, chunk, placed, f"{name}, layers"):
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
