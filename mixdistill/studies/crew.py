"""Crew: a few processes that do independent jobs while this one shows how far they are. For studies of many small runs.

One thread a process: small students gain nothing from more, and two processes would fight over the cores.
"""

import concurrent.futures
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
POLL = 0.2  # seconds between two looks at what has arrived
PATIENCE = 30.0  # seconds until processes that do not end are ended; compiling cannot be interrupted

Report = Callable[[float], None]  # the share of the job that is done, 0 to 1


class Interrupted(Exception):
    """A job was stopped by a signal."""


class Job(NamedTuple):
    """`function(*arguments, report)`, which has to be importable by name."""

    title: str
    function: Callable[..., Any]
    arguments: tuple = ()


class Crew:
    """Context manager. `workers` processes; 0: this one. `KeyboardInterrupt` when it or a job was interrupted."""

    def __init__(self, workers: int, total: int, *, compiled: Path | None = None):
        """`total`: how many jobs there will be in all. `compiled`: a folder in which the processes share their compiled
        programs."""
        self._workers, self._total, self._done = workers, total, 0
        self._environment = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}"}
        if compiled is not None:
            self._environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(compiled.absolute()),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        self._before = {name: os.environ.get(name) for name in self._environment}
        self._bars = _bars() if sys.stdout.isatty() else None
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        self._began = time.perf_counter()
        if self._bars:
            self._bars.start()
            self._whole = self._bars.add_task("all", total=self._total, note="")
        if self._workers:
            os.environ.update(self._environment)  # the workers inherit it, and read it when they import jax
            context = multiprocessing.get_context("spawn")
            self._arrived = context.Queue()
            self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, context, _begin, (self._arrived,))
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._bars:
            self._bars.stop()
        if self._pool:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            if kind is not None:
                _end_children()
            for name, value in self._before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    def do(self, jobs: Sequence[Job]) -> list[Any]:
        """The results, in the order of the jobs."""
        if self._pool is None:
            return [self._alone(job) for job in jobs]
        futures = [self._pool.submit(_work, n, job) for n, job in enumerate(jobs)]
        tasks: dict[int, Any] = {}
        waiting = set(futures)
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, POLL, concurrent.futures.FIRST_COMPLETED)
            self._drain(jobs, tasks)
            for future in done:
                n = futures.index(future)
                _, seconds = future.result()
                self._finished(jobs[n].title, seconds, tasks.pop(n, None))
        return [future.result()[0] for future in futures]

    def _alone(self, job: Job) -> Any:
        began = time.perf_counter()
        result = _done(job, lambda share: None)
        self._finished(job.title, time.perf_counter() - began, None)
        return result

    def _drain(self, jobs: Sequence[Job], tasks: dict[int, Any]) -> None:
        while True:
            try:
                n, share = self._arrived.get_nowait()
            except queue.Empty:
                return
            if self._bars:
                if n not in tasks:
                    tasks[n] = self._bars.add_task(jobs[n].title, total=1.0, note="")
                self._bars.update(tasks[n], completed=share)

    def _finished(self, title: str, seconds: float, task: Any) -> None:
        self._done += 1
        if self._bars is None:
            left = (time.perf_counter() - self._began) / self._done * (self._total - self._done)
            print(f"{self._done}/{self._total}  {title}  {seconds:.0f} s, about {left / 60:.0f} min left", flush=True)
            return
        self._bars.update(self._whole, completed=self._done)
        if task is not None:
            self._bars.remove_task(task)


def _end_children() -> None:
    """Asks again and again: a run takes the first signal as a request to stop, and its process goes on."""
    until = time.monotonic() + PATIENCE
    while (alive := multiprocessing.active_children()) and time.monotonic() < until:
        for process in alive:
            process.terminate()
        alive[0].join(POLL)
    for process in alive:
        process.kill()


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), transient=True)


# Of a worker: where its reports go, and whether it was told to stop.
_report_to: Any = None
_stopped = False


def _begin(arrived: Any) -> None:
    """A worker's first act."""
    global _report_to
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; a run that goes on hears it itself
    _report_to = arrived


def _leave_with_parent() -> None:
    """A pool's worker would wait for ever for the next job of a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int, job: Job) -> tuple[Any, float]:
    global _stopped
    if _stopped:
        raise KeyboardInterrupt
    began = time.perf_counter()
    try:
        result = _done(job, lambda share: _report_to.put((number, share)))
    except KeyboardInterrupt:
        _stopped = True
        raise
    return result, time.perf_counter() - began


def _done(job: Job, report: Report) -> Any:
    try:
        return job.function(*job.arguments, report)
    except Interrupted:
        raise KeyboardInterrupt from None
