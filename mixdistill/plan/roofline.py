"""How fast a train step can be at best: the slowest of arithmetic, memory and communication."""

from typing import NamedTuple

from mixdistill.plan.topology import Topology


class Work(NamedTuple):
    """Of one train step, on all devices together or on one."""

    useful_flops: float  # all devices
    done_flops: float  # all devices
    memory_bytes: float  # one device: weights and state that have to be read and written
    link_bytes: float  # one device
    network_bytes: float  # one device, between slices or hosts
    tokens: int  # all devices


class Bound(NamedTuple):
    """Seconds of a train step, and what follows."""

    arithmetic: float
    memory: float
    links: float
    network: float
    mfu: float
    tokens_per_second: float
    intensity: float  # FLOPs for each byte of memory

    @property
    def seconds(self) -> float:
        """Of a train step: nothing overlaps better than completely."""
        return max(self.arithmetic, self.memory, self.links, self.network)

    @property
    def limit(self) -> str:
        """What the step waits for."""
        times = {"arithmetic": self.arithmetic, "memory": self.memory, "links": self.links, "network": self.network}
        return max(times, key=lambda name: times[name])


def bound(work: Work, topology: Topology) -> Bound | None:
    """None where nothing is known of the chip."""
    chip = topology.chip
    if chip.peak is None or chip.bandwidth is None or chip.links is None or chip.network is None:
        return None
    arithmetic = work.done_flops / topology.chips / chip.peak
    times = arithmetic, work.memory_bytes / chip.bandwidth, work.link_bytes / chip.links
    network = work.network_bytes / chip.network
    seconds = max(*times, network)
    return Bound(
        *times,
        network,
        mfu=work.useful_flops / topology.chips / chip.peak / seconds,
        tokens_per_second=work.tokens / seconds,
        intensity=work.done_flops / topology.chips / max(work.memory_bytes, 1.0),
    )
