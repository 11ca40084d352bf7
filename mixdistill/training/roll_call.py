"""At the start all processes find each other, and say what they are about to run: it has to be the same."""

import hashlib
import importlib.metadata
import os
import socket
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from mixdistill.errors import UserError

# Hosts of a pod start minutes apart (images are pulled, disks are mounted); a job whose hosts are not all there after
# this time has lost one.
START_UP = 600  # seconds
# A process that is gone is noticed after this time, and the others end, so that none waits for it in a collective.
# Compiling and saving go on in threads of their own and do not hold up the heartbeat.
HEARTBEAT = 30  # seconds
HOST_BYTES = 64


def join(start_up: int = START_UP, heartbeat: int = HEARTBEAT) -> None:
    """Finds the other processes: by JAX_COORDINATOR_ADDRESS, MIXDISTILL_PROCESSES and MIXDISTILL_PROCESS where they are
    set, otherwise as SLURM, GKE or the TPU say. Raises `UserError` if they say nothing, or half of it."""
    names = ("MIXDISTILL_PROCESSES", "MIXDISTILL_PROCESS")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not all(value.isdecimal() for value in given.values()) or len(given) == 1:
        raise UserError(f"{' and '.join(names)} have to be two numbers, and are {given}")
    count, index = (int(given[name]) if given else None for name in names)
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            initialization_timeout=start_up,
            heartbeat_timeout_seconds=heartbeat,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: {error}; start it through SLURM, GKE or on a TPU, or set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, MIXDISTILL_PROCESSES=COUNT and MIXDISTILL_PROCESS=INDEX"
        ) from None


def versions() -> dict[str, str]:
    """Of what decides about numbers."""
    return {f"version of {name}": importlib.metadata.version(name) for name in ("mixdistill", "jax", "jaxlib", "flax")}


def roll_call(claims: Mapping[str, str]) -> list[str]:
    """Waits for all processes, and gives the host of each. `claims` are what has to be the same on all of them.

    Raises `UserError` on all processes that names the claim, and the first process that says otherwise.
    """
    digests = [hashlib.sha256(claim.encode()).digest() for claim in claims.values()]
    host = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    mine = np.frombuffer(b"".join([host, *digests]), np.uint8)
    if jax.process_count() == 1:
        everyone = mine[None]
    else:
        everyone = np.asarray(multihost_utils.process_allgather(mine))
    hosts = [bytes(row[:HOST_BYTES]).rstrip(b"\0").decode(errors="replace") for row in everyone]
    told = everyone[:, HOST_BYTES:].reshape(len(everyone), len(claims), -1)
    for number, (name, claim) in enumerate(claims.items()):
        other = [index for index in range(len(told)) if not np.array_equal(told[index, number], told[0, number])]
        if other:
            raise UserError(
                f"the {name} of process {other[0]} on {hosts[other[0]]} is not that of process 0 on {hosts[0]} "
                f"(this is process {jax.process_index()} with {claim[:100]}); all hosts have to run the same"
            )
    return hosts
