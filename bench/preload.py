"""Imported by the process that workers are forked from (bench/workers.py), and by nobody else."""

import contextlib
import importlib
import os
import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the command; without it the workers would be killed

import numpy as np  # noqa: E402

from bench.environment import process_name  # noqa: E402
from bench.progress import STOP  # noqa: E402
from bench.workers import MODULES, SERVER  # noqa: E402


def _in_a_worker() -> None:
    np.random.seed()  # else all of them would draw the same
    if not os.environ.get(STOP):  # which tells the others to end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


for _name in os.environ[MODULES].split(","):
    with contextlib.suppress(Exception):  # a worker that needs it will say so
        importlib.import_module(_name)
os.environ[SERVER] = f"{process_name()} {time.process_time()}"
os.register_at_fork(after_in_child=_in_a_worker)
