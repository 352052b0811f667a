"""Which claims and measurements there are: the suite's own, and those of a user's file."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.claims.claim import Claim, Measurement

Item = Claim | Measurement


def built_in() -> dict[str, Item]:
    """The suite's own: every ``CLAIMS`` and ``MEASUREMENTS`` of the modules in ``bench/claims/theory``, by name."""
    from bench.claims import theory

    modules = sorted(module.name for module in pkgutil.iter_modules(theory.__path__))
    found: dict[str, Item] = {}
    for name in modules:
        _add(found, importlib.import_module(f"{theory.__name__}.{name}"), name)
    return found


def load(path: Path, known: Mapping[str, Item]) -> dict[str, Item]:
    """``known`` and what a user's Python file lists in ``CLAIMS`` and ``MEASUREMENTS``.

    Its folder goes on the path, also of worker processes, so that its studies can be found there by name.

    Raises:
        ValueError: no such file, one that does not import, one with neither list, or a name that is taken.
    """
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"--claims {path} is no Python file.")
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    try:
        module = importlib.import_module(path.stem)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--claims {path} does not import: {type(error).__name__}: {error}") from error
    if Path(str(getattr(module, "__file__", ""))).resolve() != path.resolve():
        raise ValueError(f"--claims {path}: Python already knows another module {path.stem}: rename the file.")
    if not hasattr(module, "CLAIMS") and not hasattr(module, "MEASUREMENTS"):
        raise ValueError(f"--claims {path} has neither CLAIMS nor MEASUREMENTS, lists of what it adds.")
    found = dict(known)
    _add(found, module, str(path))
    return found


def choose(known: Mapping[str, Item], patterns: Sequence[str]) -> list[Item]:
    """Those whose names match one of the patterns (``*`` stands for anything); all of them for none.

    Raises:
        ValueError: a pattern that matches nothing.
    """
    chosen: dict[str, Item] = {}
    for pattern in patterns or ["*"]:
        matching = {name: known[name] for name in known if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            near = difflib.get_close_matches(pattern.rstrip("*-"), known, 3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"Unknown claim '{pattern}'.{hint} --list names all {len(known)} of them.")
        chosen |= matching
    return list(chosen.values())


def _add(found: dict[str, Item], module: object, where: str) -> None:
    lists = getattr(module, "CLAIMS", ()), getattr(module, "MEASUREMENTS", ())
    if not all(isinstance(each, list | tuple) for each in lists):
        raise ValueError(f"{where}: CLAIMS and MEASUREMENTS must be lists of Claim and Measurement objects.")
    listed: Iterable[Item] = [*lists[0], *lists[1]]
    for item in listed:
        if not isinstance(item, Claim | Measurement):
            raise ValueError(f"{where}: CLAIMS and MEASUREMENTS list Claim and Measurement objects, not {item!r}.")
        if item.name in found:
            raise ValueError(f"{where}: there already is a claim or measurement named {item.name}.")
        found[item.name] = item
