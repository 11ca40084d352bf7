"""`launch --on local`: real processes that find each other, refuse to differ, and do not wait for one that is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world

pytestmark = pytest.mark.multiprocess
RECIPES = Path(__file__).parents[1] / "resume" / "toy_recipes.py"
CLI = [sys.executable, "-m", "mixdistill.cli"]
# One device a process.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "shards"
    write_world(CHAIN, folder, {"F": 40, "B": 40, "H": 40})
    return folder


def test_a_killed_process_ends_the_job_and_is_named(shards, tmp_path):
    changes = ["--set", f"stages.0.source.shards={shards}"]
    words = ["launch", f"{RECIPES}:endless", "--on", "local", "--processes", "2", "--workdir", str(tmp_path / "w")]
    began = subprocess.Popen(
        [*CLI, *words, *changes, "--submit"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        metrics = tmp_path / "w" / "metrics.jsonl"
        _wait(lambda: metrics.exists() and metrics.stat().st_size > 0, began)
        second = next(
            child for child in psutil.Process(began.pid).children() if child.environ().get("MIXDISTILL_PROCESS") == "1"
        )
        second.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, errors = began.communicate(timeout=90)
    finally:
        began.kill()
    assert time.monotonic() - killed < 60
    assert began.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 was ended by SIGKILL; the others are stopped" in errors


def _wait(until, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_that_differ_refuse_to_start(shards, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for index in range(2):
        environment = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "MIXDISTILL_PROCESSES": "2",
            "MIXDISTILL_PROCESS": str(index),
        }
        words = ["train", f"{RECIPES}:endless", "--workdir", str(tmp_path / "w"), "--distributed"]
        changes = [f"stages.0.source.shards={shards}", f"seed={index}"]
        started.append(
            subprocess.Popen(
                [*CLI, *words, *(word for change in changes for word in ("--set", change))],
                env=ENVIRONMENT | environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [child.communicate(timeout=120)[1] for child in started]
    finally:
        for child in started:
            child.kill()
    host = socket.gethostname()
    for index, error in enumerate(errors):
        assert f"the recipe of process 1 on {host} is not that of process 0 on {host}" in error
        assert f"this is process {index}" in error
    assert [child.returncode for child in started] == [2, 2]
    assert not (tmp_path / "w").exists()


def test_half_of_an_address_is_refused():
    environment = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "MIXDISTILL_PROCESS": "0"}
    words = ["train", f"{RECIPES}:endless", "--distributed"]
    done = subprocess.run([*CLI, *words], env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "MIXDISTILL_PROCESSES and MIXDISTILL_PROCESS have to be two numbers" in done.stderr
