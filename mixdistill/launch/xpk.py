"""The command of xpk, which makes and applies a JobSet by itself."""

import shlex

from mixdistill.errors import UserError
from mixdistill.launch.job import GRACE, Job

USES = ("image", "cluster", "project", "zone", "priority", "restarts")


def write(job: Job) -> str:
    """As a script with one command."""
    return f"#!/bin/bash\nset -eu\n{shlex.join(words(job))}\n"


def submit(path: str, job: Job) -> list[list[str]]:
    """What hands it in."""
    return [words(job)]


def words(job: Job) -> list[str]:
    """The command."""
    if job.machine.kind != "tpu":
        raise UserError(f"xpk is written for TPUs here, and {job.machine.name} is none; use --on gke")
    missing = [f"--{name}" for name in ("image", "cluster") if getattr(job, name) is None]
    if missing:
        raise UserError(f"xpk needs {' and '.join(missing)}")
    if job.environment:
        raise UserError("xpk writes values of variables into its JobSet; use --on gke, which refers to secrets")
    options = {
        "cluster": job.cluster,
        "workload": job.name,
        "tpu-type": job.machine.cloud,
        "num-slices": job.machine.slices,
        "docker-image": job.image,
        "project": job.project,
        "zone": job.zone,
        "priority": job.priority,
        "max-restarts": job.restarts,
        "termination-grace-period-seconds": GRACE,
        "command": job.command,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["xpk", "workload", "create", *given]
