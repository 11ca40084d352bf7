"""A run on one process goes on over two, in a mesh of as many devices, and back on one: bit for bit the same run."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.recipe import load, set_all
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.checkpoint import saved_train_steps
from mixdistill.training.loop import run

WORKER = Path(__file__).parent / "worker.py"
RECIPES = Path(__file__).parents[1] / "resume" / "toy_recipes.py"


class Crash(Exception):
    pass


def crash(event) -> None:
    if event.kind == "train_step" and event.train_step == 6:
        raise Crash


@pytest.mark.multiprocess
def test_one_process_then_two_then_one(tmp_path):
    shards, whole, work = tmp_path / "shards", tmp_path / "whole", tmp_path / "work"
    write_world(CHAIN, shards, {"F": 40, "B": 40, "H": 40})
    recipe = set_all(load(f"{RECIPES}:steered"), [f"stages.{k}.source.shards={shards}" for k in (0, 1)])
    two = jax.devices()[:2]
    want = run(recipe, whole, devices=two, quiet=True)
    with pytest.raises(Crash):
        run(recipe, work, devices=two, hooks=[crash], quiet=True)

    # One process is lost: the other ends too, and does not wait for ever.
    on_processes(2, shards, work, stop_at=-7, killed=1)

    outputs = on_processes(2, shards, work, stop_at=9)
    stopped = [re.search(r"done: SIGTERM (\d+)", error) for _, error in outputs]
    assert all(stopped), outputs
    # Sent to one process after train step 9: both leave together, once both have heard of it.
    assert stopped[0][1] == stopped[1][1]
    assert 9 <= int(stopped[0][1]) < 16
    assert "train_step 9" in outputs[0][0]
    assert "train_step" not in outputs[1][0] + outputs[1][1]  # the other process is silent

    outcome = run(recipe, work, devices=two, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(outcome.state), jax.device_get(want.state))
    assert outcome.position.tokens == want.position.tokens


@pytest.mark.multiprocess
def test_a_signal_while_compiling_ends_both_with_a_checkpoint(tmp_path):
    write_world(CHAIN, tmp_path / "shards", {"F": 40, "B": 40, "H": 40})
    outputs = on_processes(2, tmp_path / "shards", tmp_path / "work", stop_at=0)
    assert all("done: SIGTERM 0" in error for _, error in outputs), outputs
    assert saved_train_steps(tmp_path / "work") == [0]


def on_processes(
    count: int, shards: Path, work: Path, stop_at: int, killed: int | None = None
) -> list[tuple[str, str]]:
    """(stdout, stderr) of each process; all end well, but if one is killed none does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    # One device a process, and programs compiled as they are here: else they round in other places.
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    arguments = [str(count), port, str(shards), str(work), str(stop_at)]
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(process), *arguments],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    try:
        outputs = [child.communicate(timeout=300) for child in started]
    finally:
        for child in started:
            child.kill()
    codes = [child.returncode for child in started]
    if killed is None:
        assert codes == [0] * count, outputs
    else:
        assert codes[killed] == -signal.SIGKILL
        assert all(codes), outputs
    return outputs
