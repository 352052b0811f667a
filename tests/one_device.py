"""Proof without a GPU that code stays on the device of its inputs: torch's ``meta`` device, watched.

Plain ``meta`` lets CPU tensors through in matrix products, convolutions and indexing, so the mode looks at every
operation. A host read of a ``meta`` tensor has no value: the mode answers 1, and counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Raises where one operation sees tensors (0-dim excepted) on two devices; ``reads``: host reads so far."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim > 0]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 and func not in _MOVES:
            raise AssertionError(f"{func} sees tensors on {' and '.join(sorted(devices))}.")
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.reads += 1
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 0
        return func(*args, **(kwargs or {}))
