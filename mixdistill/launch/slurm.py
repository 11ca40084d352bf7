"""A batch script for SLURM."""

from mixdistill.launch.job import GRACE, Job

USES = ("partition", "account", "time", "reservation", "processes")


def write(job: Job) -> str:
    """The script. SIGTERM comes `GRACE` seconds before the time is up; a preempted job is put back into the queue."""
    return "\n".join([*_header(job), "", *_body(job), ""])


def submit(path: str, job: Job) -> list[list[str]]:
    """What hands it in."""
    return [["sbatch", path]]


def _header(job: Job) -> list[str]:
    options = {
        "job-name": job.name,
        "nodes": job.hosts,
        "ntasks-per-node": job.processes,
        "gpus-per-node": job.machine.chips_a_host if job.machine.kind == "gpu" else None,
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "reservation": job.reservation,
        "signal": f"TERM@{GRACE}",
        "output": f"{job.name}-%j.log",
        "open-mode": "append",
        # PATH and HOME come along; everything else has to be named.
        "export": ",".join(("PATH", "HOME", *job.names())),
    }
    given = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    return ["#!/bin/bash", *given, "#SBATCH --requeue"]


def _body(job: Job) -> list[str]:
    lines = ["set -u", 'echo "start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"']
    if job.hosts * job.processes > 1:
        first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        lines.append(f'export JAX_COORDINATOR_ADDRESS="{first}:$((61440 + SLURM_JOB_ID % 4096))"')
    if job.machine.kind == "gpu" and job.processes == 1:
        # Under SLURM jax gives a process one GPU unless told otherwise.
        lines.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(job.machine.chips_a_host)))}")
    # One lost process ends all, so that none waits for it. TERM reaches the tasks too; the script waits for them.
    return [*lines, "trap : TERM", f"srun --kill-on-bad-exit=1 {job.command}"]
