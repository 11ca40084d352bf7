"""A managed job for SkyPilot."""

from typing import Any

from mixdistill.errors import UserError
from mixdistill.launch.as_yaml import as_yaml
from mixdistill.launch.job import PORT, Job

USES = ("image", "spot", "restarts")


def write(job: Job) -> str:
    """As YAML."""
    return as_yaml(task(job))


def submit(path: str, job: Job) -> list[list[str]]:
    """What hands it in. Values of secrets are read by sky from the environment of whoever submits."""
    secrets = [word for name in job.names() for word in ("--secret", name)]
    return [["sky", "jobs", "launch", "--yes", *secrets, path]]


def task(job: Job) -> dict[str, Any]:
    """The task. A lost or preempted host starts all of them again; the run goes on from its last checkpoint, so the
    workdir has to be on a disk or bucket that outlives them."""
    resources: dict[str, Any] = {
        "use_spot": job.spot,
        "job_recovery": {"max_restarts_on_errors": job.restarts},
    }
    if job.machine.kind == "cpu":
        resources["cpus"] = f"{job.machine.chips}+"
    else:
        resources["accelerators"] = job.machine.sky
    if job.machine.kind == "tpu":
        if job.machine.slices > 1:
            raise UserError("SkyPilot's TPU jobs are one slice here; use --on gke or xpk for several")
        resources["accelerator_args"] = {"runtime_version": job.machine.runtime}
    if job.image:
        resources["image_id"] = f"docker:{job.image}"
    # SkyPilot counts a TPU slice as one node and runs the command on each of its hosts.
    nodes = 1 if job.machine.kind == "tpu" else job.hosts
    found = {"name": job.name, "num_nodes": nodes, "resources": resources, "run": _run(job)}
    if job.names():
        found["secrets"] = dict.fromkeys(job.names())
    return found


def _run(job: Job) -> str:
    lines = ["set -eu"]
    if job.hosts > 1 and job.machine.kind != "tpu":
        lines += [
            f'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
            'export MIXDISTILL_PROCESSES="$SKYPILOT_NUM_NODES" MIXDISTILL_PROCESS="$SKYPILOT_NODE_RANK"',
        ]
    return "\n".join([*lines, f"exec {job.command}", ""])
