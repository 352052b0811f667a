"""The empirical NTK as an operator: products with vectors, without the matrix.

K v = J1 (J2' v): a backward pass of the second side's samples and a forward-mode pass of the first side's (Novak,
Sohl-Dickstein and Schoenholz 2022, "NTK-vector products"). Batches of samples bound the memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode

from bench.ntk import jacobian
from bench.ntk.plan import Request
from bench.ntk.precision import full_float32
from bench.ntk.watch import no_recomputation
from models import blocks

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class NtkOperator:
    """K between x1 [n1, *shape] and x2 [n2, *shape] of one network, as a matrix [n1 k, n2 k], sample-major; k = c for
    outputs "full", else 1. Made by ``as_operator``. ``chunk``: samples of one pass."""

    request: Request
    x1: Tensor
    x2: Tensor
    c: int
    chunk: int

    @property
    def shape(self) -> tuple[int, int]:
        k = self.c if self.request.outputs == "full" else 1
        return len(self.x1) * k, len(self.x2) * k

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.request.params.values())).dtype

    @property
    def device(self) -> torch.device:
        return self.x1.device

    @torch.inference_mode(False)
    def matvec(self, v: Tensor) -> Tensor:
        """K v: [n2 k] -> [n1 k], or [n2 k, b] -> [n1 k, b].

        Raises:
            ValueError: a vector of another length.
        """
        if v.ndim not in (1, 2) or len(v) != self.shape[1]:
            raise ValueError(f"v must have {self.shape[1]} rows, one a column of the kernel, not {list(v.shape)}.")
        v = v.clone() if v.is_inference() else v
        columns = v.to(self.device, self.dtype).reshape(len(v), -1).T
        products = torch.stack([self._product(column) for column in columns], 1)
        return products.reshape(self.shape[0], *v.shape[1:])

    __matmul__ = matvec

    def dense(self) -> Tensor:
        """The matrix, column by column: for tests, and for small kernels of networks too large for all else."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for j in range(self.shape[1]):
            unit = torch.zeros(self.shape[1], dtype=self.dtype, device=self.device)
            unit[j] = 1
            out[:, j] = self._product(unit)
        return out

    @full_float32()
    def _product(self, v: Tensor) -> Tensor:
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for seed, read in self._seeds(v):
            weights = self._pull_back(seed)
            parts = [read(part) for _, part in blocks.chunks(len(self.x1), self.chunk, self._push(weights))]
            total += torch.cat(parts).reshape(-1)
        return total

    def _seeds(self, v: Tensor) -> Iterator[tuple[Tensor, _Read]]:
        """v as combinations of the outputs [n2, c], and what to read of the outputs' changes."""
        outputs = self.request.outputs
        if outputs == "full":
            yield v.view(-1, self.c), _Read(None)
        elif outputs == "sum":
            yield v[:, None].expand(-1, self.c), _Read("sum")
        else:
            for k in range(self.c) if outputs == "trace" else [outputs]:
                assert isinstance(k, int)
                seed = v.new_zeros(len(v), self.c)
                seed[:, k] = v
                yield seed, _Read(k)

    def _pull_back(self, seed: Tensor) -> Weights:
        """J2' seed."""
        leaves = {name: self.request.params[name][0].detach().requires_grad_() for name in self.request.trained}

        def gradient(part: slice) -> list[Tensor]:
            with torch.enable_grad(), no_recomputation():
                output = self._forward(leaves, self.x2[part])
            return list(torch.autograd.grad(output, list(leaves.values()), seed[part], materialize_grads=True))

        total = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for _, found in blocks.chunks(len(self.x2), self.chunk, gradient):
            for sum_, one in zip(total, found, strict=True):
                sum_ += one
        return dict(zip(leaves, total, strict=True))

    def _push(self, weights: Weights) -> _Push:
        return _Push(self, weights)

    def _forward(self, trained: Weights, x: Tensor) -> Tensor:
        values = {**self.request.buffers, **self.request.member(0), **trained}
        output: Tensor = functional_call(self.request.net, values, (x,))
        return output


@dataclass(frozen=True)
class _Push:
    """J1 weights, for some rows: [n, c]."""

    operator: NtkOperator
    weights: Weights

    def __call__(self, part: slice) -> Tensor:
        x = self.operator.x1[part]
        at = {name: self.operator.request.params[name][0].detach() for name in self.weights}
        try:
            # Neither the fused attention nor the fused layer, which a function mode turns off, has a forward mode.
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), BaseTorchFunctionMode():
                warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)  # torch's, at first use
                change: Tensor = jvp(lambda trained: self.operator._forward(trained, x), (at,), (self.weights,))[1]
            return change
        except NotImplementedError:  # an operation without a forward mode
            pass
        try:
            return self._twice_backward(at, x)
        except RuntimeError as error:  # nor a second derivative
            if blocks.out_of_memory(error):
                raise
        return self._by_gradients(at, x)

    def _twice_backward(self, at: Weights, x: Tensor) -> Tensor:
        """J w = d/du (J' u) . w, for operations that have no forward mode."""
        leaves = {name: value.requires_grad_() for name, value in at.items()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), BaseTorchFunctionMode():
            output = self.operator._forward(leaves, x)
            seed = torch.zeros_like(output).requires_grad_()
            gradients = torch.autograd.grad(
                output, list(leaves.values()), seed, create_graph=True, materialize_grads=True
            )
            total = sum((g * self.weights[name]).sum() for name, g in zip(leaves, gradients, strict=True))
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, seed)[0]

    def _by_gradients(self, at: Weights, x: Tensor) -> Tensor:
        request = self.operator.request
        fixed = {**request.buffers, **{n: value for n, value in request.member(0).items() if n not in at}}
        found = jacobian.jacobians(request.net, at, fixed, x, lambda output: output, scalar=False)
        return sum(
            (J @ self.weights[name].flatten() for name, J in found.items()),
            start=torch.zeros((), dtype=self.operator.dtype, device=x.device),
        )


@dataclass(frozen=True)
class _Read:
    which: int | str | None

    def __call__(self, change: Tensor) -> Tensor:
        if self.which is None:
            return change
        return change.sum(-1) if isinstance(self.which, str) else change[:, self.which]
