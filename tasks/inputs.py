"""The ``inputs`` option of the tasks on real data: how raw features become the inputs of a network.

Kernel theory is cleanest where all inputs have one norm, |x|^2 = d, with d the number of features: then a bias and the
weights count for as much as the initialisation says.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor

INPUTS = ("standardised", "sphere", "raw", "unit")


def prepare(
    task: str, x_train: Tensor, x_test: Tensor, inputs: str, *, centre: Tensor | None = None, own_units: bool = False
) -> tuple[Tensor, Tensor]:
    """Centre and scale the inputs of a task; every statistic but a given ``centre`` comes from the training rows.

    Args:
        task: name of the task, for errors.
        x_train: float [n_train, d], or images [n_train, c, h, w], whose mean is one number a channel.
        x_test: float [n_test, ...].
        inputs: "standardised": minus the mean, then divided by one overall standard deviation: |x|^2 is d on average;
            "sphere": minus the mean, then each row scaled to norm sqrt d;
            "raw": as they are;
            "unit": minus the mean, then each row scaled to norm 1, with a warning.
        centre: what to subtract instead of the training mean.
        own_units: the features are in different units (the columns of a table, not pixels): unless raw, each is first
            divided by its own standard deviation, or the one of the largest numbers would be the only one to count.

    Returns:
        (x_train, x_test), float32.

    Raises:
        ValueError: ``inputs`` is unknown, or a feature or row that is constant would have to be scaled.
    """
    if inputs not in INPUTS:
        raise ValueError(f"inputs of task '{task}' must be one of {', '.join(INPUTS)}, got {inputs!r}.")
    x_train, x_test = x_train.double(), x_test.double()
    if inputs == "raw":
        return x_train.float(), x_test.float()
    if centre is None:
        centre = x_train.mean((0, 2, 3), keepdim=True)[0] if x_train.ndim == 4 else x_train.mean(0)
    x_train, x_test = x_train - centre, x_test - centre
    if own_units:
        spread = x_train.square().mean(0).sqrt()
        if (spread == 0).any():
            column = int((spread == 0).nonzero()[0])
            raise ValueError(
                f"inputs '{inputs}' of task '{task}' cannot scale feature {column}, which is constant over the "
                f"{len(x_train)} training rows: raise n_train or take inputs 'raw'."
            )
        x_train, x_test = x_train / spread, x_test / spread
    if inputs == "standardised":
        scale = float(x_train.square().mean().sqrt())
        if scale == 0:
            raise ValueError(
                f"inputs 'standardised' of task '{task}' cannot scale the {len(x_train)} training rows, which are all "
                f"constant: raise n_train or take inputs 'raw'."
            )
        return (x_train / scale).float(), (x_test / scale).float()
    if inputs == "unit":
        warnings.warn(
            f"Inputs 'unit' of task '{task}' have norm 1, not sqrt(d): in a network's first layer the bias then "
            f"dominates.",
            stacklevel=4,
        )
    norm = 1.0 if inputs == "unit" else math.sqrt(x_train[0].numel())
    return _to_norm(task, "train", x_train, norm), _to_norm(task, "test", x_test, norm)


def _to_norm(task: str, split: str, x: Tensor, norm: float) -> Tensor:
    lengths = x.flatten(1).norm(dim=1)
    if (lengths == 0).any():
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(
            f"Row {row} of x_{split} of task '{task}' is the mean itself and has no direction: take inputs "
            f"'standardised' or 'raw'."
        )
    return (x * (norm / lengths).view(-1, *[1] * (x.ndim - 1))).float()
