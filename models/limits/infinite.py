"""The infinite-width limit of a network, derived from the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from models.blocks import fill
from models.limits.state import Kernels, NoInfiniteWidthLimit
from models.limits.trace import Program

TILE = 256  # rows and columns whose chain of elementwise operations stays in the cache
LIVE = 12  # tensors of a tile's size alive at once, at most


class Limit(NamedTuple):
    """Kernels of one output unit between inputs x1 [n1, ...] and x2 [n2, ...], in their dtype."""

    nngp: Tensor  # [n1, n2] covariance of the outputs at initialization
    ntk: Tensor  # [n1, n2] neural tangent kernel
    error: float  # estimate of the largest relative error of a layer's quadrature; 0 where all is closed form


class _Diagonal(NamedTuple):
    nngp: Tensor  # [n]
    ntk: Tensor


class InfiniteWidth:
    """The NNGP and NTK of a network with wide hidden layers; called with inputs. Made by `infinite_width`."""

    def __init__(self, module: nn.Module) -> None:
        self.program = Program(module)

    def __call__(self, x1: Tensor, x2: Tensor | None = None, memory: int | None = None) -> Limit:
        """Kernels between x1 [n1, *shape] and x2 [n2, *shape] (None: x1 with itself, half the work, exact diagonal).

        Device and dtype are those of the inputs; use float64 for solves. `memory`: bytes to work with besides the
        result (None: what is free). Raises ValueError for inputs that do not match each other or the network.
        """
        _check(x1, x2)
        symmetric = x2 is None
        with torch.no_grad():
            left = self.program.run_features(x1)
            right = left if x2 is None else self.program.run_features(x2)
            memos: dict[fx.Node, dict[str, Any]] = {node: {} for node, _ in self.program.steps}
            both = left if x2 is None else {node: torch.cat([left[node], right[node]]) for node in left}
            diagonals = self._diagonals(both, memos)
            n1 = len(x1)
            n2 = n1 if x2 is None else len(x2)
            shift = 0 if symmetric else n1

            def tile(rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
                second = slice(cols.start + shift, cols.stop + shift)
                same = symmetric and rows.start == cols.start
                return self._tile(left, right, rows, cols, second, diagonals, memos, same)

            nngp = x1.new_empty(n1, n2)
            ntk = torch.empty_like(nngp)
            bytes_per_entry = LIVE * nngp.element_size()
            fill((nngp, ntk), tile, bytes_per_entry=bytes_per_entry, symmetric=symmetric, memory=memory, max_side=TILE)
        return Limit(nngp, ntk, max((memo.get("error", 0.0) for memo in memos.values()), default=0.0))

    def _diagonals(
        self, features: dict[fx.Node, Tensor], memos: dict[fx.Node, dict[str, Any]]
    ) -> dict[fx.Node, _Diagonal]:
        """Every node's kernels of each input with itself, by running the rules on these pairs alone."""
        found: dict[fx.Node, _Diagonal] = {}

        def gram(node: fx.Node) -> Kernels:
            h = features[node]
            return _input_kernels((h * h).sum(1) / h.shape[1], h.shape[1], diagonal=True)

        def settle(node: fx.Node, k: Kernels) -> Kernels:
            found[node] = _Diagonal(k.nngp, k.ntk)
            return replace(k, q1=k.nngp, q2=k.nngp)

        self._walk(gram, settle, memos)
        return found

    def _tile(
        self,
        left: dict[fx.Node, Tensor],
        right: dict[fx.Node, Tensor],
        rows: slice,
        cols: slice,
        second: slice,
        diagonals: dict[fx.Node, _Diagonal],
        memos: dict[fx.Node, dict[str, Any]],
        same: bool,
    ) -> tuple[Tensor, Tensor]:
        """Kernels of a tile; `second`: its columns among all diagonals; `same`: rows are also its first columns."""

        def gram(node: fx.Node) -> Kernels:
            h = left[node]
            return _input_kernels(h[rows] @ right[node][cols].T / h.shape[1], h.shape[1], diagonal=False)

        def settle(node: fx.Node, k: Kernels) -> Kernels:
            nngp, ntk = diagonals[node]
            if same:
                k = replace(k, nngp=_with_diagonal(k.nngp, nngp[rows]), ntk=_with_diagonal(k.ntk, ntk[rows]))
            return replace(k, q1=nngp[rows, None], q2=nngp[None, second])

        result = self._walk(gram, settle, memos)
        return result.nngp, result.ntk

    def _walk(
        self,
        gram: Callable[[fx.Node], Kernels],
        settle: Callable[[fx.Node, Kernels], Kernels],
        memos: dict[fx.Node, dict[str, Any]],
    ) -> Kernels:
        """Carry kernels along the graph: `gram` starts from features, `settle` finishes what each rule returns."""
        values: dict[fx.Node, Kernels] = {}
        for node, apply in self.program.steps:
            for arg in node.all_input_nodes:
                if arg not in values:
                    values[arg] = settle(arg, gram(arg))

            def ready(arg: fx.Node, memo: dict[str, Any] = memos[node]) -> Any:
                return replace(values[arg], memo=memo)

            try:
                values[node] = settle(node, apply(*map_arg(node.args, ready), **map_arg(node.kwargs, ready)))
            except NoInfiniteWidthLimit as error:
                raise NoInfiniteWidthLimit(f"{self.program.name(node)}: {error}.") from None
        return values[self.program.output]


def infinite_width(module: nn.Module) -> InfiniteWidth:
    """The infinite-width limit of `module`: a callable (x1, x2=None, memory=None) -> Limit.

    The module is traced (torch.fx), and one rule for each layer or function carries NNGP and NTK through the graph
    (Lee et al. 2018; Jacot et al. 2018; Lee et al. 2019). Hidden layers are taken as wide; the first layer's fan_in
    is finite, and exact for Gaussian weights. Both kernels are per output unit: the full NTK of c outputs is the
    Kronecker product with the c x c identity. With `standard` layers the NTK is the leading prediction at the
    module's own widths: empirical / predicted -> 1. torch.nn.Linear is read as `standard` with weights and biases of
    variance 1 / (3 fan_in), its default initialization: that is uniform, and acts as Gaussian only for a large
    fan_in (a first layer of 10 inputs is off by some per cent). Parameters with requires_grad=False add nothing to
    the NTK; derivatives are those of autograd (0 for a step). Dropout must be in evaluation mode.
    Raises NoInfiniteWidthLimit (a ValueError), naming the part and the remedy, where a rule is missing.
    """
    return InfiniteWidth(module)


def _input_kernels(nngp: Tensor, units: int, diagonal: bool) -> Kernels:
    zeros = torch.zeros_like(nngp)
    return Kernels(nngp, zeros, nngp, nngp, units, gaussian=False, diagonal=diagonal)


def _with_diagonal(tile: Tensor, values: Tensor) -> Tensor:
    # Out of place: a rule may have returned its input or an expanded tensor.
    return torch.diagonal_scatter(tile, values)


def _check(x1: Tensor, x2: Tensor | None) -> None:
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
            raise ValueError(f"{name} must be a float tensor [n, ...] with n >= 1, not {x.dtype} {list(x.shape)}.")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite, but holds NaN or infinity.")
    if x2 is not None and (x2.shape[1:] != x1.shape[1:] or x2.dtype != x1.dtype or x2.device != x1.device):
        described = [f"{list(x.shape[1:])} {x.dtype} on {x.device}" for x in (x1, x2)]
        raise ValueError(f"x2 must have the sample shape, dtype and device of x1, {described[0]}, not {described[1]}.")
