"""The one-sentence refusals that the whole package shares."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def unknown(kind: str, name: object, available: Iterable[str]) -> ValueError:
    """The error for a name outside a list, with the nearest name as a suggestion."""
    names = list(available)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names)}.")


def check_choice(kind: str, name: object, available: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `available`."""
    names = list(available)
    if name not in names:
        raise unknown(kind, name, names)


def check_count(field: str, value: object, minimum: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{field} must be an integer of at least {minimum}, not {value!r}.")


def check_std(field: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{field} must be a finite number of at least 0, not {value!r}.")
