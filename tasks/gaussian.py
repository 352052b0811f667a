"""Targets of Gaussian inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.draw import check_sizes, check_whole, generator
from tasks.task import Task, with_label_noise

# Half of a standard Gaussian lies between the two: the classes are balanced.
STRIPE = (-0.3, 1.18549)


def stripe(d: int = 10, *, n_train: int = 256, n_test: int = 512, seed: int = 0, noise: float = 0.0) -> Task:
    """The stripe model: y = -1 where -0.3 < x1 < 1.18549, else +1, for x standard Gaussian in d dimensions.

    Source: J. Paccolat, L. Petrini, M. Geiger, K. Tyloo, M. Wyart, "Geometric compression of invariant manifolds in
    neural networks" (2020).

    Args:
        d: dimension, at least 1.
        n_train: training points, float32 [n_train, d].
        n_test: test points.
        seed: data seed.
        noise: variance of the noise on the training labels.

    Raises:
        ValueError: an argument is out of range.
    """
    check_whole("d of the stripe", d, 1)
    check_sizes(n_train, n_test)
    rng = generator(seed)
    x_test, x_train = (torch.randn(n, d, generator=rng) for n in (n_test, n_train))

    def y(x: Tensor) -> Tensor:
        inside = (x[:, :1] > STRIPE[0]) & (x[:, :1] < STRIPE[1])
        return 1 - 2 * inside.float()

    return with_label_noise(Task("stripe", x_train, y(x_train), x_test, y(x_test)), noise, rng)
