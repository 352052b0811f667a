"""A Slurm of one node on this machine, to try ``hydra/launcher=slurm`` without a cluster.

``python tools/local_slurm.py FOLDER`` runs one until Ctrl-C and prints the environment to use it with. It needs
Debian's ``slurm-wlm`` and ``munge``, lives in FOLDER and on free ports, and touches nothing of the system.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

_CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# submitit asks sacct how jobs ended, and sacct needs a database: the controller remembers them as well.
_SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
scontrol show job -o | sed -nE \\
    -e 's/^JobId=([0-9]+) ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .*JobState=([A-Z_]+).*/\\2_\\3|\\4|{host}/p' \\
    -e 's/^JobId=([0-9]+) JobName=.*JobState=([A-Z_]+).*/\\1|\\2|{host}/p'
"""


def missing() -> list[str]:
    """The commands that are not installed here."""
    return [name for name in COMMANDS if shutil.which(name, path=_path()) is None]


@contextlib.contextmanager
def local_slurm(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """While open, a Slurm of one node with so many CPUs (real or not); yields the environment that finds it.

    Raises:
        RuntimeError: it did not start; the logs are in ``folder``.
    """
    folder = folder.resolve()
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = platform.node()
    values = {"folder": folder, "host": host, "user": getpass.getuser(), "ports": _free_ports(2), "cpus": cpus}
    (folder / "slurm.conf").write_text(_CONF.format(**values))
    sacct = folder / "bin" / "sacct"
    sacct.write_text(_SACCT.format(host=host))
    sacct.chmod(sacct.stat().st_mode | stat.S_IXUSR)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = {
        **os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{_path()}",
    }  # fmt: skip
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"],
        ["slurmctld", "-D", "-c", "-f", str(folder / "slurm.conf")],
        ["slurmd", "-D", "-c", "-N", host, "-f", str(folder / "slurm.conf")],
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("wb") as out:
                processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            if command[0] == "munged":
                _until(lambda: (folder / "munge.socket").exists(), "munged")
        _until(lambda: _state(environment) == "idle", "slurmctld or slurmd")
        yield environment
    finally:
        subprocess.run(["scancel", "--full", "--user", getpass.getuser()], env=environment, check=False,
                       capture_output=True)  # fmt: skip
        with contextlib.suppress(RuntimeError):
            _until(lambda: _state(environment) in ("idle", ""), "a job")
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _state(environment: dict[str, str]) -> str:
    done = subprocess.run(["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True)
    return done.stdout.strip()


def _until(true: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"The local Slurm did not start or end in a minute: {name} is not ready.")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main(arguments: list[str]) -> int:
    helped = any(argument in ("-h", "--help") for argument in arguments)
    if helped or len(arguments) != 1 or arguments[0].startswith("-") or missing():
        print("use python tools/local_slurm.py FOLDER; it needs Debian's slurm-wlm and munge "
              f"(missing here: {', '.join(missing()) or 'nothing'})",
              file=sys.stdout if helped else sys.stderr)  # fmt: skip
        return 0 if helped else 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C
    with local_slurm(Path(arguments[0])) as environment:
        for name in ("SLURM_CONF", "PATH"):
            print(f'export {name}="{environment[name]}"', flush=True)
        print("# Slurm runs until Ctrl-C.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
