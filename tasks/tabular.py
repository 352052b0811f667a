"""The data sets that scikit-learn ships: digits, breast cancer, wine. No download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.draw import check_sizes, disjoint, generator
from tasks.inputs import prepare
from tasks.labels import DIGITS, Target, target
from tasks.task import Task, with_label_noise


def digits(
    *,
    classes: str | Sequence[int | str] | None = "odd_even",
    n_train: int = 256,
    n_test: int = 512,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
) -> Task:
    """Handwritten digits, 8 x 8 pixels as 64 features, 1797 rows.

    The centre is the mean of all 1797 rows, not of the training rows, whatever the classes: as in the measurements that
    this suite is compared with. With "sphere", each row then has norm 8. The mean leaks from the test inputs, not from
    their labels.

    Args:
        classes: "odd_even" (+1 odd, -1 even), None (all ten, one-hot minus 0.1), two classes ([3, 8]: +1 for 3, -1 for
            8), or more (one-hot minus 1/c).
        n_train: training points, float32 [n_train, 64].
        n_test: test points; drawn with the training points without replacement.
        seed: data seed.
        noise: variance of the noise on the training labels.
        inputs: "sphere", "standardised", "raw" (0 to 16) or "unit": see :func:`tasks.inputs.prepare`.

    Raises:
        ValueError: an argument is out of range.
    """
    import sklearn.datasets

    x, labels = _table(sklearn.datasets.load_digits())
    wanted = target("digits", classes, DIGITS)
    return _task("digits", x, labels, wanted, n_train, n_test, seed, noise, inputs, centre=x.mean(0))


def breast_cancer(
    *,
    classes: Sequence[int | str] | None = ("malignant", "benign"),
    n_train: int = 100,
    n_test: int = 300,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
) -> Task:
    """Wisconsin diagnostic breast cancer, 30 features in different units, 569 rows: +1 malignant, -1 benign.

    Unless raw, each feature is centred and divided by its standard deviation over the training rows before anything
    else. Args and errors as in :func:`digits`; ``classes`` can swap the two signs.
    """
    import sklearn.datasets

    x, labels = _table(sklearn.datasets.load_breast_cancer())
    wanted = target("breast_cancer", classes, ("malignant", "benign"))
    return _task("breast_cancer", x, labels, wanted, n_train, n_test, seed, noise, inputs, own_units=True)


def wine(
    *,
    classes: Sequence[int | str] | None = None,
    n_train: int = 100,
    n_test: int = 78,
    seed: int = 0,
    noise: float = 0.0,
    inputs: str = "sphere",
) -> Task:
    """Wines of three cultivars, 13 features in different units, 178 rows: one-hot minus 1/3, or any pair.

    Features are scaled as in :func:`breast_cancer`. Args and errors as in :func:`digits`.
    """
    import sklearn.datasets

    x, labels = _table(sklearn.datasets.load_wine())
    wanted = target("wine", classes, ("0", "1", "2"))
    return _task("wine", x, labels, wanted, n_train, n_test, seed, noise, inputs, own_units=True)


def _table(bunch: object) -> tuple[Tensor, Tensor]:
    """scikit-learn's data set -> float64 [n, d] and int64 [n]."""
    return torch.tensor(bunch.data, dtype=torch.float64), torch.tensor(bunch.target)  # type: ignore[attr-defined]


def _task(
    name: str,
    x: Tensor,
    labels: Tensor,
    wanted: Target,
    n_train: int,
    n_test: int,
    seed: int,
    noise: float,
    inputs: str,
    *,
    centre: Tensor | None = None,
    own_units: bool = False,
) -> Task:
    name = f"{name}-{wanted.name}"
    check_sizes(n_train, n_test)
    rng = generator(seed)
    rows = wanted.rows(labels)
    train, test = (rows[i] for i in disjoint(len(rows), n_train, n_test, rng, f"rows of task '{name}'"))
    x_train, x_test = prepare(name, x[train], x[test], inputs, centre=centre, own_units=own_units)
    y_train, y_test = wanted.encode(labels[train]), wanted.encode(labels[test])
    return with_label_noise(Task(name, x_train, y_train, x_test, y_test), noise, rng)
