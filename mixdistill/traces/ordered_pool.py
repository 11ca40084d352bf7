"""Work over processes with the results in the order of the jobs, whatever the number of workers."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from mixdistill.errors import UserError

_function: Callable | None = None  # set once in each worker: it may be large (a tokenizer), the jobs are small


def ordered_map[Job, Result](
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int
) -> Iterator[Result]:
    """`map(function, jobs)` on `workers` fresh processes (1: in this one), reading at most a few jobs ahead.

    The processes end before an exception, Ctrl-C included, leaves here. Raises `UserError` when a worker dies.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(function,)
    )
    try:
        yield from _windowed(pool, iter(jobs), 2 * workers + 2)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died: out of memory (use fewer --workers), or a script that starts workers without "
            "`if __name__ == '__main__':`"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _windowed(pool: concurrent.futures.Executor, jobs: Iterator, ahead: int) -> Iterator:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for job in jobs:
        with _uninterrupted():
            waiting.append(pool.submit(_run, job))  # starts the processes, the first times
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back. Processes started meanwhile never see it: it goes to the whole group, and the parent alone
    decides what it means."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(function: Callable) -> None:
    global _function
    _function = function


def _run(job):
    assert _function is not None
    return _function(job)
