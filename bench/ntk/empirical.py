"""``empirical_ntk``: which outputs, which method, which members; the arithmetic is in its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.ntk.method import Method
from bench.ntk.operator import NtkOperator
from bench.ntk.plan import Outputs, Plan, Request, UnbatchedError, choose, make_plan
from bench.ntk.precision import full_float32
from bench.ntk.tiles import Kernel
from models import blocks

T = TypeVar("T")


@torch.inference_mode(False)
@full_float32()
def empirical_ntk(
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "full",
    method: Method | str = Method.AUTO,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    by_layer: bool = False,
    params: Mapping[str, Tensor] | None = None,
) -> Tensor | dict[str, Tensor]:
    """The empirical NTK, K(x, x') = grad z(x) . grad z(x'), over the trainable parameters of ``net``.

    Args:
        net: any module that maps [N, *shape] to [N, c], each sample by itself.
        x1: [n1, *shape]; its device is the device of everything. Integers (tokens) stay as they are.
        x2: [n2, *shape]; None: x1, half the work, and the kernel is exactly symmetric.
        outputs: "full": [n1, n2, c, c]; "trace": sum over outputs of K_cc, [n1, n2]; "sum": the kernel of the summed
            outputs, 1'K1, [n1, n2]; an int: the kernel of that output, [n1, n2].
        method: a ``Method`` or its value; its members say what each costs.
        memory: bytes to work with besides the result; None: what is free, less a margin.
        dtype: the precision of the whole computation; None: that of x1 (of the parameters, for integer inputs).
        by_layer: a dict, module name -> that module's share; the shares sum to the kernel.
        params: parameters to use instead of the module's own, each with a leading member axis, which becomes the
            leading axis of the result.

    In float32 the error is some 1e-6 of the largest entry, but where rounding switches a ReLU on or off (one unit of
    one sample with a pre-activation of 1e-8) that sample's row and column move by about 1 / width.

    Raises:
        ValueError: an unknown option, inputs of a shape that the net does not take, a net whose samples interact or
            whose output is not [N, c], a budget in which not one pair of samples fits, or a kernel that does not fit at
            all (``write_ntk``, ``as_operator``).
    """
    kernel = prepare(net, x1, x2, outputs, method, memory, dtype, by_layer, params)
    shares = (
        _by_products(kernel)
        if kernel.plan.method is Method.MATRIX_FREE
        else _with_rules_that_hold(kernel, Kernel.compute)
    )
    if params is None:
        shares = {name: share[0] for name, share in shares.items()}
    return shares if by_layer else shares[""]


def explain(net: nn.Module, x1: Tensor, x2: Tensor | None = None, **options: Any) -> Plan:
    """What ``empirical_ntk`` with the same arguments would do, and why: print it."""
    return prepare(net, x1, x2, **options).plan


@torch.inference_mode(False)
def prepare(
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    outputs: Outputs = "full",
    method: Method | str = Method.AUTO,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    by_layer: bool = False,
    params: Mapping[str, Tensor] | None = None,
) -> Kernel:
    """The arguments of ``empirical_ntk``, checked, and with a plan."""
    method = _check(net, x1, x2, outputs, method, dtype)
    request, one, two = _request(net, x1, x2, outputs, dtype, params)
    plan = choose(request, one, two, method)
    return Kernel(request, plan, one, two, by_layer, memory)


def as_operator(
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "full",
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    params: Mapping[str, Tensor] | None = None,
) -> NtkOperator:
    """The empirical NTK as an operator: ``.matvec(v)`` for kernels that do not fit, with the arguments and refusals of
    ``empirical_ntk``; one network only, so that ``params`` has a member axis of 1.

    Raises:
        ValueError: as ``empirical_ntk``, or several members.
    """
    if params is not None and any(len(parameter) != 1 for parameter in params.values()):
        raise ValueError("params must hold one member: an operator is of one network.")
    return _operator(prepare(net, x1, x2, outputs, Method.MATRIX_FREE, memory, dtype, False, params))


@torch.inference_mode(False)
@full_float32()
def write_ntk(
    path: Path | str,
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "full",
    method: Method | str = Method.AUTO,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``empirical_ntk`` of one network into the file ``path`` (.npy), tile by tile; returns it mapped into memory.

    A call that was stopped goes on where it was, in the tiles that it began with; a finished file is returned at once.
    For outputs "full" the file holds [n1, c, n2, c] (as [n1 c, n2 c] the sample-major matrix), and [n1, n2, c, c] is
    returned.

    Raises:
        ValueError: as ``empirical_ntk``, or the file there is of another kernel.
    """
    kernel = prepare(net, x1, x2, outputs, method, memory, dtype)
    if kernel.plan.method is Method.MATRIX_FREE:
        raise ValueError("method must be one that makes tiles, not 'matrix_free'.")
    return _with_rules_that_hold(kernel, lambda sound: sound.write(Path(path)))


def _operator(kernel: Kernel) -> NtkOperator:
    chunk = kernel.chunk(1, blocks.budget(kernel.memory, (kernel.x1[:0],)))
    x2 = kernel.x1 if kernel.x2 is None else kernel.x2
    return NtkOperator(kernel.request, kernel.x1, x2, kernel.plan.outputs, chunk)


def _with_rules_that_hold(kernel: Kernel, compute: Callable[[Kernel], T]) -> T:
    while True:
        try:
            return compute(kernel)
        except UnbatchedError as error:
            n2 = None if kernel.x2 is None else len(kernel.x2)
            exclude = error.names | frozenset(kernel.request.trained) - kernel.plan.ruled
            plan = make_plan(kernel.request, kernel.x1, len(kernel.x1), n2, kernel.nested, exclude=exclude)
            kernel = replace(kernel, plan=plan)


def _by_products(kernel: Kernel) -> dict[str, Tensor]:
    shares = kernel.empty()
    for module, share in shares.items():
        for member, out in enumerate(share):
            params = {name: value[member : member + 1] for name, value in kernel.request.params.items()}
            trained = tuple(n for n in kernel.request.trained if not kernel.by_layer or n.rpartition(".")[0] == module)
            request = replace(kernel.request, params=params, trained=trained)
            matrix = _operator(replace(kernel, request=request)).dense()
            if kernel.x2 is None:
                matrix = (matrix + matrix.T) / 2
            c = kernel.plan.c
            if out.ndim == 4:
                matrix = matrix.view(out.shape[0], c, out.shape[1], c).transpose(1, 2)
            out.copy_(matrix)
    return shares


def _request(
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None,
    outputs: Outputs,
    dtype: torch.dtype | None,
    params: Mapping[str, Tensor] | None,
) -> tuple[Request, Tensor, Tensor | None]:
    own = dict(net.named_parameters())
    trained = tuple(name for name, parameter in own.items() if parameter.requires_grad)
    if not trained:
        raise ValueError("net has no trainable parameter: set requires_grad of those that count.")
    if any(parameter.is_complex() for parameter in own.values()) or x1.is_complex():
        raise ValueError("net and x1 must be real: the kernel of complex parameters is not defined here.")
    if params is not None and own.keys() - params.keys():
        raise ValueError(f"params lacks {min(own.keys() - params.keys())!r}: it must name every parameter of net.")
    precision = dtype or (x1.dtype if x1.is_floating_point() else own[trained[0]].dtype)

    def convert(tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor  # else autograd would not keep it
        return tensor.to(x1.device, precision if tensor.is_floating_point() else tensor.dtype)

    given = {name: parameter[None] for name, parameter in own.items()} if params is None else params
    stacked = {name: convert(given[name].detach()) for name in own}
    buffers = {name: convert(buffer) for name, buffer in net.named_buffers()}
    return Request(net, stacked, buffers, trained, outputs), convert(x1), None if x2 is None else convert(x2)


def _check(
    net: nn.Module, x1: Tensor, x2: Tensor | None, outputs: Outputs, method: str, dtype: torch.dtype | None
) -> Method:
    if isinstance(outputs, bool) or not (isinstance(outputs, int) or outputs in ("full", "trace", "sum")):
        raise ValueError(f"outputs must be 'full', 'trace', 'sum' or the number of an output, not {outputs!r}.")
    if method not in list(Method):
        raise ValueError(f"method must be one of {', '.join(Method)}, not {method!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, not {dtype}.")
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x1 and x2 must agree in all axes but the first, not {list(x1.shape)} and {list(x2.shape)}.")
    for side, x in (("x1", x1), ("x2", x2)):
        if x is not None and (x.ndim == 0 or len(x) == 0):
            raise ValueError(f"{side} must hold at least one sample, not {list(x.shape)}.")
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(f"{name} (batch normalisation in train mode) makes samples interact: call net.eval().")
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{name} (dropout in train mode) makes the network random: call net.eval().")
    return next(member for member in Method if member == method)
