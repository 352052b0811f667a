"""``key=value`` arguments of the commands that need no Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HELP = ("-h", "--help")


def helped(arguments: Sequence[str], use: str) -> None:
    """Where the arguments ask for help: print how the command is called, and end with exit code 0.

    Raises:
        SystemExit: help was asked for.
    """
    if any(argument in HELP for argument in arguments):
        print(use)
        raise SystemExit(0)


def settings(arguments: Sequence[str], defaults: Mapping[str, str], use: str) -> dict[str, str]:
    """The defaults, with what the arguments say.

    Args:
        use: how the command is called, for the error: ``use python -m bench.report [runs=DIR]``.

    Raises:
        ValueError: an unknown key, or an argument without a value (one sentence).
        SystemExit: help was asked for, and printed.
    """
    helped(arguments, use)
    found = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in found or not equals or not value:
            raise ValueError(f"Unknown argument '{argument}': {use}.")
        found[key] = value
    return found
