"""Processes that do algebra, each of which can be lost: one that hangs or crashes costs its pair, not the run."""

import atexit
import concurrent.futures
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Sequence

SECONDS = 5.0  # of CPU time for one pair; most take hundredths
PATIENCE = 6.0  # times as long by the clock: for a process that sleeps, on a machine that others use too
START_SECONDS = 120.0  # by the clock: it imports sympy
WORKER = ("-m", "mixdistill.traces.grade_worker")

Pair = tuple[str, str]  # answer, reference


class Pool:
    """Up to `workers` processes, started when first needed, ended with this process or by `close`."""

    def __init__(self, workers: int = 1, seconds: float = SECONDS, command: Sequence[str] = WORKER):
        self._workers = [_Worker(seconds, command) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        atexit.register(self.close)

    def equal(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """For each pair whether its sides are equal; None where the process was lost or could not tell."""
        if len(pairs) < 2 or len(self._workers) == 1:
            return [self._ask(pair) for pair in pairs]
        with concurrent.futures.ThreadPoolExecutor(len(self._workers)) as threads:
            return list(threads.map(self._ask, pairs))

    def _ask(self, pair: Pair) -> bool | None:
        worker = self._idle.get()
        try:
            return worker.equal(pair)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes; a later `equal` starts them anew."""
        for worker in self._workers:
            worker.stop()


class _Lost(Exception):
    """The process died or was too slow."""


class _Worker:
    """One process at a time; a lost one is replaced when the next pair comes."""

    def __init__(self, seconds: float, command: Sequence[str]):
        self._seconds, self._command = seconds, command
        self._process: subprocess.Popen[bytes] | None = None
        self._unable = False  # it dies on starting: no pair can change that

    def equal(self, pair: Pair) -> bool | None:
        if self._unable:
            return None
        try:
            process = self._process or self._start()
            return self._answer(process, pair)
        except (_Lost, BrokenPipeError):
            self.stop()
            return None
        except BaseException:
            self.stop()  # interrupted between question and answer: the next answer would be this one's
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, *self._command, str(self._seconds)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0)
        try:
            _read(self._process, START_SECONDS)
        except _Lost:
            self._unable = True
            raise
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], pair: Pair) -> bool | None:
        assert process.stdin
        process.stdin.write(json.dumps(pair).encode() + b"\n")
        return _read(process, self._seconds * PATIENCE)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _read(process: subprocess.Popen[bytes], seconds: float):
    """The next line of the process as JSON. Raises `_Lost` when it does not come in time."""
    assert process.stdout
    descriptor, line, end = process.stdout.fileno(), b"", time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise _Lost
        chunk = os.read(descriptor, 2**16)
        if not chunk:
            raise _Lost
        line += chunk
    return json.loads(line)
