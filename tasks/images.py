"""MNIST, Fashion-MNIST, CIFAR-10 and SVHN: pairs or subsets of classes, pooled to any size that divides theirs.

Where the data are looked for is said in :func:`tasks.sources.load`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tasks.draw import check_sizes, check_whole, generator
from tasks.inputs import prepare
from tasks.labels import DIGITS, target
from tasks.sources import load
from tasks.task import Task, with_label_noise

FASHION = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CIFAR10 = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The names that the authors of the data give.
_FASHION_SYNONYMS = {"T-shirt/top": "tshirt", "Ankle boot": "boot"} | {n.capitalize(): n for n in FASHION}
_CIFAR10_SYNONYMS = {"airplane": "plane", "automobile": "car"}


def mnist(
    *,
    classes: str | Sequence[int | str] | None = (3, 8),
    n_train: int = 256,
    n_test: int = 350,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
    size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Task:
    """MNIST: handwritten digits, 1 x 28 x 28.

    Args:
        classes: two classes, by number or name: one output, +1 for the first and -1 for the second; more: one-hot minus
            1/c; None: all ten; "odd_even": +1 odd, -1 even (tasks of digits only).
        n_train: training points, drawn without replacement from the data's own training rows of these classes, float32
            [n_train, c, h, w].
        n_test: test points, likewise from the data's own test rows.
        seed: data seed.
        noise: variance of the noise on the training labels.
        inputs: "sphere" (the default: each image has norm sqrt(c h w), as in the digits task), "standardised", "raw"
            (0 to 1) or "unit": see :func:`tasks.inputs.prepare`.
        size: average the pixels down to size x size, which must divide the height and the width; None: as they are.
        folder: the data folder; None: the environment variable WIDEBENCH_DATA, else ``data``.
        download: let torchvision download what is not there.

    Raises:
        FileNotFoundError: the data are nowhere.
        ValueError: an argument is out of range, or a data file is damaged.
    """
    return _task("mnist", DIGITS, None, classes, n_train, n_test, seed, noise, inputs, size, folder, download)


def fashion_mnist(
    *,
    classes: Sequence[int | str] | None = ("tshirt", "shirt"),
    n_train: int = 256,
    n_test: int = 350,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
    size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Task:
    """Fashion-MNIST: clothes, 1 x 28 x 28. Args and errors as in :func:`mnist`."""
    return _task(
        "fashion_mnist",
        FASHION,
        _FASHION_SYNONYMS,
        classes,
        n_train,
        n_test,
        seed,
        noise,
        inputs,
        size,
        folder,
        download,
    )


def cifar10(
    *,
    classes: Sequence[int | str] | None = ("plane", "ship"),
    n_train: int = 256,
    n_test: int = 350,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
    size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Task:
    """CIFAR-10: colour photographs, 3 x 32 x 32. Args and errors as in :func:`mnist`."""
    return _task(
        "cifar10", CIFAR10, _CIFAR10_SYNONYMS, classes, n_train, n_test, seed, noise, inputs, size, folder, download
    )


def svhn(
    *,
    classes: str | Sequence[int | str] | None = (3, 8),
    n_train: int = 256,
    n_test: int = 350,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
    size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Task:
    """SVHN: house numbers in colour, 3 x 32 x 32, labels 0 to 9. Args and errors as in :func:`mnist`."""
    return _task("svhn", DIGITS, None, classes, n_train, n_test, seed, noise, inputs, size, folder, download)


def _task(
    name: str,
    names: Sequence[str],
    synonyms: Mapping[str, str] | None,
    classes: str | Sequence[int | str] | None,
    n_train: int,
    n_test: int,
    seed: int,
    noise: float,
    inputs: str,
    size: int | None,
    folder: str | os.PathLike[str] | None,
    download: bool,
) -> Task:
    wanted = target(name, classes, names, synonyms)
    full_name = f"{name}-{wanted.name}"
    check_sizes(n_train, n_test)
    rng = generator(seed)
    source = load(name, len(names), folder, download=download)

    def draw(split: str, n: int, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        all_labels = torch.from_numpy(labels)
        rows = wanted.rows(all_labels)
        if n > len(rows):
            raise ValueError(
                f"n_{split} of task '{full_name}' must be at most {len(rows)}, the rows of its classes among the "
                f"{split} images, got {n}."
            )
        rows = rows[torch.randperm(len(rows), generator=rng)[:n]]
        return _pooled(name, _nchw(images[rows.numpy()]), size), wanted.encode(all_labels[rows])

    x_test, y_test = draw("test", n_test, source.x_test, source.y_test)
    x_train, y_train = draw("train", n_train, source.x_train, source.y_train)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"Training and test images of task '{full_name}' must have one shape, got {list(x_train.shape[1:])} and "
            f"{list(x_test.shape[1:])}."
        )
    x_train, x_test = prepare(full_name, x_train, x_test, inputs)
    return with_label_noise(Task(full_name, x_train, y_train, x_test, y_test), noise, rng)


def _nchw(images: np.ndarray) -> Tensor:
    """uint8 [n, h, w] or [n, h, w, c] -> float64 [n, c, h, w] in [0, 1]."""
    x = torch.from_numpy(images).double() / 255
    return x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()


def _pooled(name: str, x: Tensor, size: int | None) -> Tensor:
    if size is None:
        return x
    height, width = x.shape[2:]
    check_whole(f"size of task '{name}'", size, 1, min(height, width))
    if height % size or width % size:
        raise ValueError(f"size of task '{name}' must divide the images' {height} x {width}, got {size}.")
    return avg_pool2d(x, (height // size, width // size))
