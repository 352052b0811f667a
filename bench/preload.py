"""Imported by the process that workers are forked from (bench/workers.py), and by nobody else."""

import contextlib
import importlib
import os
import time

from bench.environment import process_name
from bench.workers import MODULES, SERVER

for _name in os.environ[MODULES].split(","):
    with contextlib.suppress(Exception):  # a worker that needs it will say so
        importlib.import_module(_name)
os.environ[SERVER] = f"{process_name()} {time.process_time()}"
