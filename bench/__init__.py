"""The suite: ``python -m bench`` runs the main job, ``from bench import score`` judges anybody's two checkpoints."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

__all__ = ["score"]

_ROOT = Path(__file__).resolve().parents[1]


def _check_neighbours() -> None:
    """``models`` and ``tasks`` are common names: a folder of that name where Python looks first would hide ours.

    Raises:
        ImportError: one sentence; on the command line it is printed, and the exit code is 2.
    """
    for name in ("models", "tasks"):
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places and places[0] == _ROOT / name:
            continue
        found = places[0] if places else spec.origin if spec else "nothing"
        sentence = (
            f"widebench needs its own package '{name}' ({_ROOT / name}), and Python finds {found}: run from another "
            f"folder, or from {_ROOT}."
        )
        if sys.argv[:1] == ["-m"]:  # python -m bench...: its argv is not set yet
            print(f"widebench: {sentence}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(sentence)


_check_neighbours()


def __getattr__(name: str) -> Any:
    """``score`` on demand: the parts of the suite that need less stay quick to import."""
    if name == "score":
        from bench.checkpoints import score

        return score
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
