"""The infinite-width limit of a network, derived from the network itself."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import fill
from models.checks import check_choice
from models.limits.engines import ENGINES, Engine, Fast, fast_engine
from models.limits.trace import Program
from models.limits.walk import Walk
from models.tile_file import TileFile

log = logging.getLogger(__name__)

TILE = 256  # rows and columns whose chain of elementwise operations stays in the cache
COMPILED_TILE = 512
AT_ONCE = 2**31  # covariances of a compiled tile: some seconds
CACHED = 2**20  # entries of a tile of images, beyond one pair
LIVE = 14  # tensors of a tile's size alive at once, at most

PLAIN = (bool, int, float, str, tuple)  # settings of a module


class Limit(NamedTuple):
    """Kernels of one output unit between inputs x1 [n1, ...] and x2 [n2, ...], in their dtype."""

    nngp: Tensor  # [n1, n2] covariance of the outputs at initialization
    ntk: Tensor  # [n1, n2] neural tangent kernel
    error: float  # estimate of the largest relative error of a layer's quadrature; 0 where all is closed form


class _Plan(NamedTuple):
    """How to cut a kernel into tiles."""

    tile: Callable[[slice, slice], tuple[Tensor, Tensor]]
    bytes_per_entry: float
    bytes_per_row: float
    side: int
    error: float
    fixed: int = 0  # bytes besides the tile

    def left(self, memory: int | None) -> int | None:
        """Of the budget for the tiles; one entry always, if the budget has room for that alone."""
        if memory is None:
            return None
        entry = math.ceil(self.bytes_per_entry + 2 * self.bytes_per_row)
        return max(memory - self.fixed, min(memory, entry))


class InfiniteWidth:
    """The NNGP and NTK of a network with wide hidden layers; called with inputs. Made by `infinite_width`."""

    def __init__(self, module: nn.Module) -> None:
        self.program = Program(module)
        self._said: set[str] = set()

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor | None = None,
        memory: int | None = None,
        *,
        engine: Engine = "auto",
        file: Path | None = None,
    ) -> Limit:
        """Kernels between x1 [n1, *shape] and x2 [n2, *shape] (None: x1 with itself, half the work, exact diagonal).

        Device and dtype are those of the inputs; use float64 for solves. `memory`: bytes to work with besides the
        result (None: what is free). `engine`: "torch" (every network), "compiled" (chains of convolutions or linear
        layers, activations that bend at 0 only, and pooling, on a CPU), "triton" (such chains of convolutions, on
        CUDA) or "auto". `file`: a .npy file that the blocks
        of both kernels are written to, [n1, n2, 2]; the same call goes on with it after a kill, and the result is
        mapped to it. A long kernel logs its progress. Raises ValueError for inputs that do not match each other or
        the network, for an engine that does not know it, and for a file of another call.
        """
        check_choice("engine", engine, ENGINES)
        _check(x1, x2)
        n1, n2 = len(x1), len(x1 if x2 is None else x2)
        with torch.no_grad():
            # One pair finds what does not fit, and how large a pair is.
            entries = Walk(self.program, x1[:1], x1[:1], memory).entries()
            fast = fast_engine(self.program, x1, x2, engine, entries * n1 * n2, memory)
            self._say("torch" if fast is None else fast.name)
            plan = self._plan(x1, x2, memory, entries, fast)
            if file is None:
                nngp, ntk = x1.new_empty(n1, n2), x1.new_empty(n1, n2)
                self._fill((nngp, ntk), plan.tile, plan, memory, x2 is None)
            else:
                fingerprint = self._fingerprint(x1, x2, "torch" if fast is None else fast.name)
                with TileFile(file, (n1, n2, 2), x1.dtype, fingerprint) as done:
                    if not done.complete:
                        both = lambda rows, cols: torch.stack(plan.tile(rows, cols), -1)  # noqa: E731
                        self._fill(done.tensor, both, plan, memory, x2 is None, done)
                        done.finish()
                nngp, ntk = done.tensor.unbind(-1)
        return Limit(nngp, ntk, plan.error)

    def _plan(self, x1: Tensor, x2: Tensor | None, memory: int | None, entries: int, fast: Fast | None) -> _Plan:
        if fast is None:
            walk = Walk(self.program, x1, x2, memory)
            side = max(1, min(TILE, int((CACHED / entries) ** 0.5)))
            entry = float(LIVE * x1.element_size() * entries)
            return _Plan(walk.tile, entry, walk.bytes_per_input(), side, walk.error(), walk.fixed_bytes())
        side = min(COMPILED_TILE, 16 * math.ceil((AT_ONCE / entries) ** 0.5 / 16))
        return _Plan(fast.tile, fast.bytes_per_pair(), fast.bytes_per_image(), side, 0.0)

    def _fill(
        self,
        out: Tensor | tuple[Tensor, ...],
        tile: Callable[[slice, slice], Tensor | tuple[Tensor, ...]],
        plan: _Plan,
        memory: int | None,
        symmetric: bool,
        done: TileFile | None = None,
    ) -> None:
        fill(
            out,
            tile,
            bytes_per_entry=plan.bytes_per_entry,
            bytes_per_row=plan.bytes_per_row,
            symmetric=symmetric,
            memory=plan.left(memory),
            max_side=plan.side,
            done=done,
            name="Infinite-width kernels",
        )

    def _fingerprint(self, x1: Tensor, x2: Tensor | None, engine: str) -> str:
        """What a file of kernels depends on: network and its settings, trained parameters, buffers, inputs, engine."""
        digest = hashlib.sha256(repr((str(self.program.root), self.program.code, engine)).encode())
        for name, parameter in self.program.root.named_parameters():
            digest.update(f"{name} {parameter.requires_grad} {list(parameter.shape)}".encode())
        for name, module in self.program.root.named_modules():  # not all of them show in a module's name
            settings = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN)}
            digest.update(f"{name} {sorted(settings.items())}".encode())
        for x in (*self.program.root.buffers(), x1, x2):
            if x is not None:
                digest.update(x.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _say(self, engine: str) -> None:
        if engine not in self._said:
            log.info("Infinite-width kernels by the %s engine.", engine)
            self._said.add(engine)


def infinite_width(module: nn.Module) -> InfiniteWidth:
    """The infinite-width limit of `module`: a callable (x1, x2=None, memory=None) -> Limit.

    The module is traced (torch.fx), and one rule for each layer or function carries NNGP and NTK through the graph
    (Lee et al. 2018; Jacot et al. 2018; Lee et al. 2019; Novak et al. 2019 and Arora et al. 2019 for convolutions).
    Hidden layers are taken as wide; the first layer's fan_in is finite, and exact for Gaussian weights. Both kernels
    are per output unit: the full NTK of c outputs is the Kronecker product with the c x c identity. With `standard`
    layers the NTK is the leading prediction at the module's own widths: empirical / predicted -> 1. torch's own
    layers are read as `standard` with weights and biases of variance 1 / (3 fan_in), their default initialization:
    that is uniform, and acts as Gaussian only for a large fan_in (a first layer of 10 inputs is off by some per
    cent). Where they were initialized otherwise, say so by the attributes `layer.w_std` and `layer.b_std`: weights of
    variance w_std^2 / fan_in, biases of variance b_std^2. Parameters with requires_grad=False add nothing to the NTK;
    derivatives are those of autograd (0 for a step). Element-wise functions of one tensor, however written, are one
    activation; tensors are added only if they are uncorrelated.
    Raises NoInfiniteWidthLimit (a ValueError), naming the part and the remedy, where a rule is missing.
    """
    return InfiniteWidth(module)


def _check(x1: Tensor, x2: Tensor | None) -> None:
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
            raise ValueError(f"{name} must be a float tensor [n, ...] with n >= 1, not {x.dtype} {list(x.shape)}.")
        if not x.is_meta and not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite, but holds NaN or infinity.")
        largest = 0.0 if x.is_meta else float(x.abs().max())
        if math.prod(x.shape[1:]) * largest * largest > torch.finfo(x.dtype).max:
            raise ValueError(f"{name} is so large that its squares overflow in {x.dtype}: scale it, or use float64.")
    if x2 is not None and (x2.shape[1:] != x1.shape[1:] or x2.dtype != x1.dtype or x2.device != x1.device):
        described = [f"{list(x.shape[1:])} {x.dtype} on {x.device}" for x in (x1, x2)]
        raise ValueError(f"x2 must have the sample shape, dtype and device of x1, {described[0]}, not {described[1]}.")
