"""float32 as it is elsewhere: not in TensorFloat-32, whose products keep 10 bits of 23."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn  # a module whose type does not say what it holds
BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of CUDA in all of float32's bits: cuDNN's are not by default, and whoever trains in
    TensorFloat-32 need not measure in it. What the user has set is set again at the end."""
    before = [backend.fp32_precision for backend in BACKENDS]
    try:
        for backend in BACKENDS:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = precision
