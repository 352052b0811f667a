"""joblib's workers, forked from one process that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator

from joblib.externals.loky.backend.context import set_start_method

MODULES = "WIDEBENCH_MODULES"
"""Environment variable: what that process imports (bench/preload.py), with commas between."""
SERVER = "WIDEBENCH_SERVER"
"""Environment variable of the workers: that process, and the CPU seconds that it took to import."""
WANDB = ("wandb", "wandb.sdk.launch.inputs.internal")
"""What W&B imports, and what it imports at its first run."""
LONGEST = 70
"""Characters of the folder of temporary files: the server's socket lies there, and its path has 103 at most."""
COMMANDS = ("bench.__main__", "bench.claims.__main__")


def forkable() -> bool:
    """Whether workers can be forked: not where the parent is a user's program, which they would run again, nor on
    macOS, whose libraries do not bear it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # None in a script or a shell
    command = spec.name if spec else ""
    return sys.platform == "linux" and command in COMMANDS and len(tempfile.gettempdir()) <= LONGEST


@contextlib.contextmanager
def forked(*modules: str) -> Iterator[None]:
    """While open, the workers that joblib starts have these modules: imported once (some five seconds), and in memory
    once. Where that cannot be, each worker imports them for itself.

    The server keeps the environment of the moment at which the first worker was started.
    """
    if not forkable():
        yield
        return
    multiprocessing.set_forkserver_preload(["bench.preload"])
    set_start_method("forkserver", force=True)
    try:
        with variable(MODULES, ",".join(modules)):
            yield
    finally:
        set_start_method(None, force=True)


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """An environment variable, as long as this is open."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
