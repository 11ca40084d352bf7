"""The process that compiles: `python -m mixdistill.plan.worker REQUEST`, started by `ask`. libtpu can be loaded by one
process of a host, and reads its settings from the environment, once; so others wait in a queue."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixdistill.errors import UserError
from mixdistill.plan.topology import Topology, find

LOCK = "mixdistill-plan.lock"


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, from a process of its own: {"stages": [...]} or {"error": text}. Raises `UserError` for
    the latter, and if the process dies."""
    topology = find(request["topology"])
    command = [sys.executable, "-m", "mixdistill.plan.worker", json.dumps(request)]
    done = subprocess.run(command, env=_environment(topology), capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise UserError(f"compiling for {topology.name} failed: {done.stderr.strip()[-2000:] or done.returncode}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def _environment(topology: Topology) -> dict[str, str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if topology.chip.platform == "cpu":
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={topology.chips}"
    elif topology.chip.platform == "gpu":
        env["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # there is no GPU to try kernels on
    else:
        env |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
        env["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a lock file that another process left must not end ours
    return env


@contextlib.contextmanager
def queue(topology: Topology) -> Iterator[None]:
    """Waits until no other plan compiles for a TPU on this host."""
    if topology.chip.platform != "tpu":
        yield
        return
    with (Path(tempfile.gettempdir()) / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # freed when the process ends, however it ends
        yield


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Plans every stage that is asked for."""
    from mixdistill.mesh import preset
    from mixdistill.plan.aot import vary
    from mixdistill.plan.stage import plan_stage
    from mixdistill.recipe import load, set_all

    recipe, changes = set_all(load(request["recipe"]), request["set"]), dict(request["changes"])
    if "preset" in changes:
        changes["layout"] = preset(changes.pop("preset"))
    recipe, topology = vary(recipe, **changes), find(request["topology"])
    wanted = range(len(recipe.stages)) if request["stage"] is None else [request["stage"]]
    options = {"fast": request["fast"], "memory": request["memory"]}
    with queue(topology):
        return {"recipe": recipe.name, "stages": [plan_stage(recipe, stage, topology, **options) for stage in wanted]}


if __name__ == "__main__":
    try:
        print(json.dumps(answer(json.loads(sys.argv[1]))))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
