"""Targets of one direction on the sphere of radius sqrt d, and Fourier modes on the circle of radius sqrt 2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.draw import check_sizes, check_whole, disjoint, generator
from tasks.task import Task, with_label_noise


def single_index(d: int = 16, *, n_train: int = 256, n_test: int = 512, seed: int = 0, noise: float = 0.0) -> Task:
    """s / sqrt 2 + (s^2 - 1) / 2 with s = x1.

    Its mean square is 1 for large d and 1/2 + (3d / (d + 2) - 1) / 4 exactly (0.917 at d = 16). The mean is 0.

    Args:
        d: dimension, at least 3.
        n_train: training points, float32 [n_train, d], each row of norm sqrt d.
        n_test: test points.
        seed: data seed.
        noise: variance of the noise on the training labels.

    Raises:
        ValueError: an argument is out of range.
    """
    return _on_sphere("single_index", d, lambda s: s / math.sqrt(2) + (s**2 - 1) / 2, n_train, n_test, seed, noise)


def harmonic(
    d: int = 8, degree: int = 2, *, n_train: int = 128, n_test: int = 512, seed: int = 0, noise: float = 0.0
) -> Task:
    """The zonal spherical harmonic of x1 of this degree, of unit mean square: sqrt(m) C_k(t) / C_k(1), t = x1 / sqrt d.

    C_k is the Gegenbauer polynomial of index (d - 2) / 2 and m the number of harmonics of degree k, so the target is
    an eigenfunction of every rotation-invariant kernel.

    Args and errors as in :func:`single_index`; degree is 0 or more.
    """
    check_whole("degree of the harmonic", degree, 0)
    check_whole("d of the sphere", d, 3)

    def target(s: Tensor) -> Tensor:
        return math.sqrt(harmonics(d, degree)) * legendre(s / math.sqrt(d), d, degree)

    return _on_sphere(f"harmonic{degree}", d, target, n_train, n_test, seed, noise)


def circle_modes(
    k: int = 2,
    *,
    points: int | None = None,
    n_train: int = 32,
    n_test: int = 512,
    seed: int = 0,
    noise: float = 0.0,
) -> Task:
    """sqrt 2 cos(k angle) on the circle of radius sqrt 2, of unit mean square (so 1 for k = 0).

    Args:
        k: frequency, 0 or more.
        points: None: angles are uniform on [0, 2 pi). M: the domain is the M equidistant angles 2 pi j / M, drawn
            without replacement, train and test disjoint; k is then at most M / 2 (beyond, it is the mode M - k), and
            k = M / 2 is the alternating mode +1, -1.
        n_train: training points, float32 [n_train, 2]; with ``points``, n_train + n_test is at most ``points``.
        n_test: test points.
        seed: data seed.
        noise: variance of the noise on the training labels.

    Raises:
        ValueError: an argument is out of range.
    """
    rng = generator(seed)
    if points is None:
        check_whole("k of the circle", k, 0)
        check_sizes(n_train, n_test)
        test, train = (torch.rand(n, generator=rng, dtype=torch.float64) for n in (n_test, n_train))
    else:
        check_whole("points of the circle", points, 2)
        check_whole(f"k of the circle of {points} points", k, 0, points // 2)
        train, test = (
            rows.double() / points for rows in disjoint(points, n_train, n_test, rng, "points of the circle")
        )
    alone = k == 0 or 2 * k == points  # no sine of this frequency: the cosine has mean square 1 without sqrt 2
    factor = 1 if alone else math.sqrt(2)

    def x(turns: Tensor) -> Tensor:
        angle = 2 * math.pi * turns
        return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1).float()

    def y(turns: Tensor) -> Tensor:
        return factor * (2 * math.pi * k * turns[:, None]).cos().float()

    return with_label_noise(Task(f"circle{k}", x(train), y(train), x(test), y(test), "circle"), noise, rng)


def harmonics(d: int, degree: int) -> int:
    """The number of linearly independent spherical harmonics of this degree on the sphere in d >= 2 dimensions."""
    if degree == 0:
        return 1
    return (2 * degree + d - 2) * math.comb(degree + d - 3, degree - 1) // degree


def legendre(t: Tensor, d: int, degree: int) -> Tensor:
    """The Gegenbauer polynomial of index (d - 2) / 2 divided by its value at 1, at t in [-1, 1]; shape of t.

    By its three-term recurrence (k + d - 2) P_{k+1} = (2k + d - 2) t P_k - k P_{k-1}, stable because |P_k| <= 1.
    """
    before, now = torch.ones_like(t), t
    if degree == 0:
        return before
    for k in range(1, degree):
        before, now = now, ((2 * k + d - 2) * t * now - k * before) / (k + d - 2)
    return now


def _on_sphere(
    name: str, d: int, target: Callable[[Tensor], Tensor], n_train: int, n_test: int, seed: int, noise: float
) -> Task:
    check_whole("d of the sphere", d, 3)
    check_sizes(n_train, n_test)
    rng = generator(seed)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, d, generator=rng, dtype=torch.float64)
        x *= math.sqrt(d) / x.norm(dim=1, keepdim=True)
        return x.float(), target(x[:, :1]).float()

    x_test, y_test = draw(n_test)
    x_train, y_train = draw(n_train)
    return with_label_noise(Task(name, x_train, y_train, x_test, y_test, "sphere"), noise, rng)
