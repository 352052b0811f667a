"""Proof without a GPU that code stays on the device of its inputs: torch's ``meta`` device, watched.

Plain ``meta`` lets CPU tensors through in matrix products, convolutions and indexing, so the mode looks at every
operation. It does refuse a host read, for there is no value to read, unless the mode is told what to answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Raises where one operation sees tensors, 0-dim ones excepted, on two devices.

    ``answer``: what a host read of a ``meta`` number gets (True, if it is a truth value); None: it is an error.
    ``reads``, ``seen``: how many host reads there were, and how many operations on ``meta`` tensors.
    """

    def __init__(self, answer: float | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.reads = 0
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim > 0]
        devices = {tensor.device.type for tensor in tensors}
        self.seen += "meta" in devices
        if len(devices) > 1 and func not in _MOVES:
            raise AssertionError(f"{func} sees tensors on {' and '.join(sorted(devices))}.")
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and self.answer is not None:
            self.reads += 1
            return True if args[0].dtype == torch.bool else self.answer if args[0].is_floating_point() else 0
        return func(*args, **(kwargs or {}))
