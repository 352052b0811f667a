"""``key=value`` arguments of the commands that need no Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def settings(arguments: Sequence[str], defaults: Mapping[str, str], use: str) -> dict[str, str]:
    """The defaults, with what the arguments say.

    Args:
        use: how the command is called, for the error: ``use python -m bench.report [runs=DIR]``.

    Raises:
        ValueError: an unknown key, or an argument without a value (one sentence).
    """
    found = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in found or not equals or not value:
            raise ValueError(f"Unknown argument '{argument}': {use}.")
        found[key] = value
    return found
