"""Seeded drawing, shared by all tasks: one stream of random numbers a seed, and rows without replacement.

Every factory draws its test points first. At one seed the test set is therefore the same for every ``n_train``, as a
learning curve wants it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A network initialised from torch.Generator seeded with the same integer must not repeat our stream: its first weights
# would be the Gaussian inputs themselves.
_STREAM = 0x7A5C_0000
# torch's CPU generator keeps the low 32 bits of its seed.
_SEEDS = 2**32
# Up to here a permutation of everything is cheap; beyond, duplicates are rare enough to be rejected.
_ENUMERABLE = 2**20


def generator(seed: int) -> torch.Generator:
    """The generator of a data seed: reproducible to the bit, and not the stream of ``torch.manual_seed(seed)``.

    Raises:
        ValueError: ``seed`` is not a whole number from 0 to 2^32 - 1.
    """
    check_whole("seed", seed, 0, _SEEDS - 1)
    return torch.Generator().manual_seed(seed ^ _STREAM)


def check_whole(field: str, value: object, least: int, most: int | None = None) -> None:
    """Refuse anything but a whole number in [least, most].

    Raises:
        ValueError: naming ``field`` and the allowed values.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{field} must be a whole number {allowed}, got {value!r}.")


def check_sizes(n_train: int, n_test: int) -> None:
    """Refuse sizes of the training and the test set that are not positive whole numbers.

    Raises:
        ValueError: naming the field.
    """
    check_whole("n_train", n_train, 1)
    check_whole("n_test", n_test, 1)


def disjoint(total: int, n_train: int, n_test: int, rng: torch.Generator, of: str) -> tuple[Tensor, Tensor]:
    """Training and test numbers from {0, ..., total - 1}, without replacement and disjoint.

    Args:
        total: size of the population, at most 2^62.
        n_train: how many for training.
        n_test: how many for testing.
        rng: the generator.
        of: what the population is, for the error.

    Returns:
        (train, test), int64 of shapes [n_train] and [n_test], uniform over ordered samples.

    Raises:
        ValueError: the population is too small.
    """
    check_sizes(n_train, n_test)
    wanted = n_train + n_test
    if wanted > total:
        raise ValueError(
            f"n_train + n_test = {n_train} + {n_test} must be at most the {total} {of}: they are drawn without "
            f"replacement, train and test disjoint."
        )
    drawn = torch.randperm(total, generator=rng)[:wanted] if total <= _ENUMERABLE else _distinct(total, wanted, rng)
    return drawn[n_test:], drawn[:n_test]


def _distinct(total: int, wanted: int, rng: torch.Generator) -> Tensor:
    """The first ``wanted`` different values of a stream of uniform integers below ``total``: [wanted], int64."""
    stream = np.empty(0, dtype=np.int64)
    while True:
        stream = np.concatenate([stream, torch.randint(0, total, (wanted,), generator=rng).numpy()])
        first = np.sort(np.unique(stream, return_index=True)[1])
        if len(first) >= wanted:
            return torch.from_numpy(stream[first[:wanted]])
