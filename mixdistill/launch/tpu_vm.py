"""A script for TPU VMs: the same command on all workers, the TPU made again when it is preempted."""

import shlex

from mixdistill.errors import UserError
from mixdistill.launch.job import Job

USES = ("project", "zone", "spot", "restarts", "service_account")


def write(job: Job) -> str:
    """The script."""
    if job.machine.kind != "tpu":
        raise UserError(f"{job.machine.name} is no TPU; use --on slurm, gke or skypilot")
    if job.machine.slices > 1:
        raise UserError("TPU VMs are one slice here; use --on gke or xpk for several")
    missing = [f"--{name}" for name in ("project", "zone") if getattr(job, name) is None]
    if missing:
        raise UserError(f"a TPU VM needs {' and '.join(missing)}")
    place = shlex.join([f"--project={job.project}", f"--zone={job.zone}"])
    make = [f"--accelerator-type={job.machine.cloud}", f"--version={job.machine.runtime}"]
    make += ["--spot"] if job.spot else []
    make += [f"--service-account={job.service_account}"] if job.service_account else []
    return SCRIPT.format(
        name=job.name,
        place=place,
        make=shlex.join(make),
        restarts=job.restarts,
        remote=shlex.quote(_remote(job)),
    )


def submit(path: str, job: Job) -> list[list[str]]:
    """What runs it; it stays until the run is done."""
    return [["bash", path]]


def _remote(job: Job) -> str:
    """Secrets come from Secret Manager on the workers themselves, and never stand in a command line here."""
    secrets = [
        f'export {name}="$(gcloud secrets versions access latest --secret={shlex.quote(where)})"'
        for name, where in job.references().items()
    ]
    return "; ".join(["set -eu", *secrets, f"exec {job.command}"])


SCRIPT = """#!/bin/bash
# The recipe has to be installed on the workers once; see docs/pods.md.
set -u
tpu=(gcloud compute tpus tpu-vm)
place=({place})
for start in $(seq 0 {restarts}); do
  state=$("${{tpu[@]}}" describe {name} "${{place[@]}}" --format='value(state)' 2>/dev/null)
  if [ "$state" = PREEMPTED ]; then
    "${{tpu[@]}}" delete {name} "${{place[@]}}" --quiet
    state=
  fi
  if [ -z "$state" ]; then
    "${{tpu[@]}}" create {name} "${{place[@]}}" {make} || {{ sleep 60; continue; }}
  fi
  "${{tpu[@]}}" ssh {name} "${{place[@]}}" --worker=all --command={remote} && exit 0
  echo "start $start of {name} failed" >&2
  sleep 30
done
exit 1
"""
