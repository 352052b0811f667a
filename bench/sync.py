"""``python -m bench.sync [runs=DIR]``: send the offline runs to Weights & Biases, each once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import store
from bench.arguments import settings
from bench.studies.study import FOLDER
from bench.tracking import is_whole, logged_in

_DEFAULTS = {"runs": "runs", "entity": "", "project": ""}
_USE = "use python -m bench.sync [runs=DIR] [entity=NAME] [project=NAME]"


def main(arguments: Sequence[str]) -> int:
    """Returns 0 where all is sent, 1 where something is not (it is tried again the next time), 2 where nothing can be.

    A run that was sent has W&B's own mark beside it, ``run-ID.wandb.synced``, and is not sent again.
    """
    try:
        chosen = settings(arguments, _DEFAULTS, _USE)
        runs, command = Path(chosen["runs"]), _command()
        if not runs.is_dir():
            raise ValueError(f"There is no folder {runs}: name the folder of runs by runs=DIR.")
        if not logged_in():
            raise ValueError("Sending runs needs a W&B account: run `wandb login` or set WANDB_API_KEY.")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options = [f"--{name}={chosen[name]}" for name in ("entity", "project") if chosen[name]]
    sent = failed = before = 0
    for file in offline_files(runs):
        if mark(file).exists():
            before += 1
        elif store.held(file.parents[2]):
            print(f"{file.parents[2].name}: another process is at work on it; later.")
            failed += 1
        elif not is_whole(file.parents[2]):
            print(f"{file.parents[2].name}: its process was killed; run it again first.")
            failed += 1
        elif problem := _send(command, options, file):
            print(f"{file.parents[2].name}: not sent: {problem}")
            failed += 1
        else:
            print(f"{file.parents[2].name}: sent.")
            sent += 1
    print(f"{sent} sent, {before} sent earlier, {failed} not sent.")
    return int(failed > 0)


def offline_files(runs: Path) -> list[Path]:
    """Of every cell and study, what W&B recorded offline, the oldest first: a run taken up again has several."""
    return sorted(f for place in (runs, runs / FOLDER) for f in place.glob("*/wandb/offline-run-*/run-*.wandb"))


def mark(file: Path) -> Path:
    """Where W&B notes that it was sent."""
    return file.with_name(f"{file.name}.synced")


def _send(command: str, options: Sequence[str], file: Path) -> str:
    """What went wrong; empty where nothing did."""
    done = subprocess.run(
        [command, "sync", *options, str(file.parent)], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        return (lines[-1] if lines else f"wandb ended with exit code {done.returncode}")[:300]
    mark(file).touch()
    return ""


def _command() -> str:
    """Raises: ValueError where there is no ``wandb``, neither on the path nor beside this Python."""
    found = shutil.which("wandb", path=f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}")
    if found is None:
        raise ValueError("There is no wandb command here: pip install -c constraints.txt -e .")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
