"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: its kernels run on the CPU, slowly

ROOT = Path(__file__).resolve().parents[1]
# pytest puts this file's folder in front of the path, where tests/tasks, tests/models and tests/bench would be found as
# namespace packages instead of the packages they test.
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real image data, by WIDEBENCH_DATA or beside the checkout; skips where there is none."""
    named = os.environ.get("WIDEBENCH_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not any(folder.glob("*.npz")):
        pytest.skip(f"no image data: no .npz file in {folder} (name a folder by WIDEBENCH_DATA)")
    return folder
