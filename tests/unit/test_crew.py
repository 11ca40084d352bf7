"""Crew: results in order, in this process and in others, and what an interrupted job does."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mixdistill.studies.crew import Crew, Interrupted, Job


def double(x, report):
    report(0.5)
    return 2 * x, os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("JAX_COMPILATION_CACHE_DIR")


def interrupted(report):
    raise Interrupted


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_jobs(workers, tmp_path, capsys):
    before = dict(os.environ)
    with Crew(workers, 5, compiled=tmp_path) as crew:
        first = crew.do([Job(f"job {x}", double, (x,)) for x in range(4)])
        (last,) = crew.do([Job("last", double, (7,))])
    assert [result[0] for result in (*first, last)] == [0, 2, 4, 6, 14]
    assert (os.getpid() in {result[1] for result in first}) == (workers == 0)
    if workers:
        assert {result[2:] for result in first} == {("1", str(tmp_path))}
    assert dict(os.environ) == before
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[-1].startswith("5/5  last")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_job_interrupts_everything(workers):
    def start():
        with Crew(workers, 2) as crew:
            crew.do([Job("a", interrupted), Job("b", double, (1,))])

    with pytest.raises(KeyboardInterrupt):
        start()


def stubborn(report):
    """Takes the first signal as a request to stop, as a run does; then its process is free for the next job."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *unused: heard.append(True))
    while not heard:
        time.sleep(0.02)
    signal.signal(signal.SIGTERM, before)


def test_no_process_goes_on_after_an_interruption():
    def start():
        with Crew(2, 6) as crew:
            crew.do([Job("stubborn", stubborn), Job("a", interrupted), *[Job("stubborn", stubborn)] * 4])

    with pytest.raises(KeyboardInterrupt):
        start()
    assert multiprocessing.active_children() == []


PARENT = """
import sys
from mixdistill.studies.crew import Crew, Job
sys.path.insert(0, sys.argv[1])
from test_crew import slow
with Crew(1, 1) as crew:
    crew.do([Job("slow", slow, (sys.argv[2],))])
"""


def slow(path, report):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(Path(__file__).parent), str(note)])
    until = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    worker = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=20)  # raises if it is still there
