"""The machines that a job can ask for, and what each engine calls them."""

import dataclasses
import math
import re

from mixdistill.errors import UserError


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips that one job (on TPUs: one slice) runs on."""

    name: str  # "v5e-16", "h200-64", "cpu-8"
    chips: int
    hosts: int
    kind: str  # "tpu", "gpu" or "cpu"
    gke: str = ""  # label of the accelerator on Google Kubernetes Engine
    topology: str = ""  # "4x4": how the chips of a slice lie
    cloud: str = ""  # what the TPU API and xpk call it
    sky: str = ""  # what SkyPilot calls one host's chips

    @property
    def chips_a_host(self) -> int:
        """All hosts have as many."""
        return self.chips // self.hosts


# Per generation: label on GKE, prefix of the TPU API, cores a chip (v5p counts cores in its names).
TPUS = {
    "v5e": ("tpu-v5-lite-podslice", "v5litepod", 1),
    "v5p": ("tpu-v5p-slice", "v5p", 2),
    "v6e": ("tpu-v6e-slice", "v6e", 1),
}
# Slices that exist: chips -> how they lie. Single hosts of v5e and v6e have up to 8 chips; hosts of slices have 4.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}
GPUS = {"h100": ("nvidia-h100-80gb", "H100"), "h200": ("nvidia-h200-141gb", "H200"), "b200": ("nvidia-b200", "B200")}
GPUS_A_HOST = 8


def machine(name: str) -> Machine:
    """The machine of that name: GENERATION-COUNT. Raises `UserError` for one that does not exist."""
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    kind, count = (match[1], int(match[2])) if match else (name, 0)
    found = None
    if kind == "cpu" and count > 0:
        found = Machine(name, count, 1, "cpu")
    elif kind in GPUS and (0 < count <= GPUS_A_HOST or (count > 0 and count % GPUS_A_HOST == 0)):
        label, sky = GPUS[kind]
        hosts = math.ceil(count / GPUS_A_HOST)
        found = Machine(name, count, hosts, "gpu", gke=label, sky=f"{sky}:{count // hosts}")
    elif kind in TPUS:
        found = _tpu(name, kind, count)
    if found is None:
        raise UserError(f"there is no machine {name!r}; known are {known()}")
    return found


def _tpu(name: str, generation: str, count: int) -> Machine | None:
    label, prefix, cores = TPUS[generation]
    chips = count // cores
    topology = (CUBES if generation == "v5p" else FLAT).get(chips)
    if topology is None or chips * cores != count:
        return None
    hosts = 1 if generation != "v5p" and chips <= 8 else max(chips // 4, 1)
    return Machine(name, chips, hosts, "tpu", label, topology, f"{prefix}-{count}", f"tpu-{name}:1")


def known() -> str:
    """All names in a line."""
    flat = ", ".join(str(chips) for chips in FLAT)
    cubes = ", ".join(str(2 * chips) for chips in CUBES)
    gpus = ", ".join(f"{kind}-N" for kind in GPUS)
    return f"v5e-N and v6e-N (N = {flat}), v5p-N (N = {cubes}), {gpus} (N up to 8, or eights), cpu-N"
