"""Boolean targets on the hypercube {-1,1}^d: parities, monomials, the staircase.

Inputs are drawn without replacement, train and test disjoint: at d = 16 and 256 rows drawn with replacement, four sets
in ten would hold a duplicate, and the kernel's Gram matrix would be singular. With ridge or noise, theory needs the
finite-population correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tasks.draw import check_whole, disjoint, generator
from tasks.task import Task, with_label_noise

_MOST_D = 62  # a corner is one int64


def staircase(
    d: int = 16, *, degree: int = 3, n_train: int = 128, n_test: int = 512, seed: int = 0, noise: float = 0.0
) -> Task:
    """(x1 + x1 x2 + ... + x1 ... x_degree) / sqrt(degree), of unit mean square over the cube.

    Args:
        d: dimension, up to 62.
        degree: number of terms, 1 to d; three is the staircase of the main job.
        n_train: training points, float32 [n_train, d] of +1 and -1.
        n_test: test points; n_train + n_test is at most 2^d.
        seed: data seed.
        noise: variance of the noise on the training labels.

    Raises:
        ValueError: an argument is out of range.
    """
    check_whole("d of the hypercube", d, 1, _MOST_D)
    check_whole("degree of the staircase", degree, 1, d)
    name = "staircase" if degree == 3 else f"staircase{degree}"
    return _task(name, d, lambda x: x[:, :degree].cumprod(1).sum(1) / math.sqrt(degree), n_train, n_test, seed, noise)


def parity(
    d: int = 20, k: int = 3, *, n_train: int = 400, n_test: int = 512, seed: int = 0, noise: float = 0.0
) -> Task:
    """x1 x2 ... xk, the parity of the first k coordinates; the constant 1 for k = 0.

    Args and errors as in :func:`staircase`; k is 0 to d.
    """
    check_whole("d of the hypercube", d, 1, _MOST_D)
    check_whole("k of the parity", k, 0, d)
    return _task(f"parity{k}", d, lambda x: x[:, :k].prod(1), n_train, n_test, seed, noise)


def monomial(
    d: int = 16,
    indices: Sequence[int] = (0, 1),
    *,
    n_train: int = 256,
    n_test: int = 512,
    seed: int = 0,
    noise: float = 0.0,
) -> Task:
    """The product of the coordinates named in ``indices`` (counted from 0); the constant 1 if there are none.

    Args and errors as in :func:`staircase`; the indices are different and each 0 to d - 1.
    """
    check_whole("d of the hypercube", d, 1, _MOST_D)
    if isinstance(indices, str) or not isinstance(indices, Sequence):
        raise ValueError(f"indices of the monomial must be a list of whole numbers, got {indices!r}.")
    chosen = list(indices)
    for index in chosen:
        check_whole("each of the indices of the monomial", index, 0, d - 1)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"indices of the monomial must all be different, got {chosen}.")
    name = "monomial-" + ("_".join(map(str, chosen)) or "constant")
    return _task(name, d, lambda x: x[:, chosen].prod(1), n_train, n_test, seed, noise)


def _task(
    name: str, d: int, target: Callable[[Tensor], Tensor], n_train: int, n_test: int, seed: int, noise: float
) -> Task:
    rng = generator(seed)
    train, test = disjoint(2**d, n_train, n_test, rng, f"corners of the hypercube of d = {d}")
    x_train, x_test = _corners(train, d), _corners(test, d)
    y_train, y_test = target(x_train)[:, None], target(x_test)[:, None]
    return with_label_noise(Task(name, x_train, y_train, x_test, y_test, "hypercube"), noise, rng)


def _corners(codes: Tensor, d: int) -> Tensor:
    """[n] whole numbers -> [n, d] float32 of +-1: coordinate j is bit j."""
    return ((codes[:, None] >> torch.arange(d)) & 1).float() * 2 - 1
