"""All processes on this machine: to try what a pod will do, and for tests."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time

from mixdistill.launch.job import GRACE, PORT, Job

USES = ("processes",)


def write(job: Job) -> str:
    """The command of every process, and what tells them apart."""
    lines = [f"{name}={value}" for name, value in _environment(job, 0, PORT).items()]
    return "\n".join([f"# process 0 of {job.processes}", *lines, job.command, ""])


def start(job: Job) -> int:
    """Runs them to their end: 0, or the exit code of the first that failed, after which the others are stopped."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "mixdistill.cli", *shlex.split(job.command)[1:]]
    children = [
        subprocess.Popen(words, env={**os.environ, **_environment(job, index, port)}) for index in range(job.processes)
    ]
    # The signal goes to all, and they agree on where to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _send(children, number))
    return _watch(children)


def _environment(job: Job, index: int, port: int) -> dict[str, str]:
    if job.processes == 1:
        return {}
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "MIXDISTILL_PROCESSES": str(job.processes),
        "MIXDISTILL_PROCESS": str(index),
    }


def _watch(children: list[subprocess.Popen]) -> int:
    while True:
        codes = [child.poll() for child in children]
        failed = [index for index, code in enumerate(codes) if code]
        if failed:
            return _end(children, failed[0])
        if None not in codes:
            return 0
        time.sleep(0.1)


def _end(children: list[subprocess.Popen], index: int) -> int:
    """One has failed: the others could only wait for it."""
    code = children[index].returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    print(f"mixdistill launch: process {index} of {len(children)} {how}; the others are stopped", file=sys.stderr)
    _send(children, signal.SIGTERM)
    deadline = time.monotonic() + GRACE / 4
    for child in children:
        try:
            child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return code if code > 0 else 128 - code


def _send(children: list[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
