"""A SLURM cluster of this one host, all of whose state is in one folder: for tests, as root, on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket/munge
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def missing() -> str:
    """Why there can be none here; empty if there can."""
    if os.geteuid() != 0:
        return "SLURM's daemons want root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Gives the environment in which SLURM's commands find it; ends its daemons at the end."""
    # Not in pytest's folder, which munge's own user may not enter.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield from _cluster(Path(folder))


def _cluster(folder: Path) -> Iterator[dict[str, str]]:
    folder.chmod(0o755)
    for name in ("munge", "socket", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "munge").chmod(0o700)
    for path in (folder / "munge", key, folder / "socket"):
        shutil.chown(path, "munge", "munge")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = [f"--key-file={key}", f"--socket={folder}/socket/munge", f"--pid-file={folder}/munge/pid"]
    munged += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
    try:
        subprocess.run(["runuser", "-u", "munge", "--", "munged", *munged], check=True)
        subprocess.run(["slurmctld", "-c"], env=environment, check=True)
        subprocess.run(["slurmd", "-N", host], env=environment, check=True)
        _wait_until_idle(environment)
        yield environment
    finally:
        for path in (folder / "slurmd.pid", folder / "slurmctld.pid", folder / "munge" / "pid"):
            _end(path)


def _wait_until_idle(environment: dict[str, str]) -> None:
    for _ in range(100):
        found = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.3)
    raise RuntimeError(f"the node did not get idle: {found.stdout}{found.stderr}")


def _end(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGTERM)
