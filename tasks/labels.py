"""From class labels to regression targets: odd against even, a pair of classes, or one-hot minus 1/c.

Shared by the tabular tasks and the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DIGITS = tuple("0123456789")
ODD_EVEN = "odd_even"


@dataclass(frozen=True)
class Target:
    """Which classes take part, and what the network is to answer for each.

    Attributes:
        classes: the numbers of the classes that take part, in the order asked for.
        kind: "odd_even" (+1 odd, -1 even), "pair" (+1 for the first, -1 for the second) or "one_hot" (c columns,
            one-hot minus 1/c, so every row sums to 0).
        name: for the name of the task, "odd_even", "plane_ship" or "all".
    """

    classes: tuple[int, ...]
    kind: str
    name: str

    def rows(self, labels: Tensor) -> Tensor:
        """The rows whose label takes part: int64 [m], ascending, from labels [n]."""
        return torch.isin(labels, torch.tensor(self.classes)).nonzero()[:, 0]

    def encode(self, labels: Tensor) -> Tensor:
        """Targets of labels that all take part: int64 [n] -> float32 [n, 1], or [n, c] for the kind "one_hot"."""
        if self.kind == "odd_even":
            return (labels % 2 * 2 - 1).float()[:, None]
        if self.kind == "pair":
            return torch.where(labels == self.classes[0], 1.0, -1.0)[:, None]
        one_hot = (labels[:, None] == torch.tensor(self.classes)).float()
        return one_hot - 1 / len(self.classes)


def target(
    task: str,
    classes: str | Sequence[int | str] | None,
    names: Sequence[str],
    synonyms: Mapping[str, str] | None = None,
) -> Target:
    """Read a ``classes`` argument.

    Args:
        task: name of the task, for the error.
        classes: None: all of them. "odd_even": all of them, for digits only. A list of at least two classes, each by
            number or by name: two give a single output of +1 for the first and -1 for the second, more give one-hot
            minus 1/c.
        names: names of the classes, by number.
        synonyms: other names that are understood.

    Raises:
        ValueError: a class is unknown or named twice, or there are fewer than two.
    """
    synonyms = synonyms or {}
    digits = tuple(names) == DIGITS
    by_name = {name: number for number, name in enumerate(names)}

    def number(item: object) -> int | None:
        if isinstance(item, str):
            return by_name.get(synonyms.get(item, item))
        known = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(names)
        return item if known else None  # type: ignore[return-value]

    if digits and classes == ODD_EVEN:
        return Target(tuple(range(10)), "odd_even", ODD_EVEN)
    listed = isinstance(classes, Sequence) and not isinstance(classes, str)
    asked: list[object] = list(classes) if listed else []  # type: ignore[arg-type]
    numbers = tuple(range(len(names))) if classes is None else tuple(n for n in map(number, asked) if n is not None)
    if len(numbers) < 2 or len(set(numbers)) < len(numbers) or (listed and len(numbers) < len(asked)):
        got = asked if listed else classes
        numbered = "" if digits else f" or by number, 0 to {len(names) - 1}"
        raise ValueError(
            f"classes of task '{task}' must be null (all), {'odd_even, ' if digits else ''}or a list of at least two "
            f"different ones of {', '.join(names)}{numbered}, got {got!r}."
        )
    kind = "pair" if len(numbers) == 2 else "one_hot"
    return Target(numbers, kind, "all" if classes is None else "_".join(names[n] for n in numbers))
