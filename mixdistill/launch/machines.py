"""The machines that a job can ask for: those of `plan`, more GPUs and CPUs, and what each engine calls them."""

import dataclasses
import re

from mixdistill.errors import UserError
from mixdistill.plan import topology


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips that one job runs on; on TPUs: that each of its slices has."""

    name: str  # "v5e-16", "h200-64", "cpu-8"
    chips: int  # a slice
    hosts: int  # a slice
    kind: str  # "tpu", "gpu" or "cpu"
    slices: int = 1  # joined over the data centre's network
    gke: str = ""  # label of the accelerator on Google Kubernetes Engine
    topology: str = ""  # "4x4": how the chips of a slice lie
    cloud: str = ""  # what the TPU API and xpk call a slice
    sky: str = ""  # what SkyPilot calls a slice, or the chips of one host
    runtime: str = ""  # software version of a TPU VM

    @property
    def chips_a_host(self) -> int:
        """All hosts have as many."""
        return self.chips // self.hosts


# Label on GKE, prefix of the TPU API, software version.
TPUS = {
    "v5e": ("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": ("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}
# Label on GKE, and SkyPilot's name.
GPUS = {"h100": ("nvidia-h100-80gb", "H100"), "h200": ("nvidia-h200-141gb", "H200"), "b200": ("nvidia-b200", "B200")}
GPUS_A_HOST = 8


def machine(name: str) -> Machine:
    """The machine of that name: KIND-COUNT, 2xKIND-COUNT for two slices. Raises `UserError` for one that is not."""
    match = re.fullmatch(r"([a-z]\w*)-(\d+)", name)
    kind, count = (match[1], int(match[2])) if match else ("", 0)
    if kind == "cpu" and count > 0:
        return Machine(name, count, 1, "cpu")
    if kind in GPUS and (0 < count <= GPUS_A_HOST or (count > 0 and count % GPUS_A_HOST == 0)):
        label, sky = GPUS[kind]
        hosts = -(-count // GPUS_A_HOST)
        return Machine(name, count, hosts, "gpu", gke=label, sky=f"{sky}:{count // hosts}")
    if re.fullmatch(rf"(\d+x)?({'|'.join(TPUS)})-\d+", name):
        return _tpu(topology.find(name))
    raise UserError(f"there is no machine {name!r}; known are {known()}")


def _tpu(found: topology.Topology) -> Machine:
    label, prefix, runtime = TPUS[found.kind]
    one = found.name.rpartition("x")[2]
    chips, hosts = found.chips // found.slices, found.hosts // found.slices
    cloud = f"{prefix}-{one.partition('-')[2]}"
    return Machine(found.name, chips, hosts, "tpu", found.slices, label, found.shape, cloud, f"tpu-{one}:1", runtime)


def known() -> str:
    """All names in a line."""
    tpus = [f"{kind}-{{{','.join(map(str, topology.SHAPES[kind]))}}}" for kind in TPUS]
    return (
        ", ".join([*tpus, *(f"{kind}-N" for kind in GPUS)]) + " (N up to 8, or eights), cpu-N; 2xv5e-16 is two slices"
    )
