"""Accelerators by the names that people rent them under, and by those that jax gives their devices.

Peaks are the makers' figures for dense bfloat16; bandwidths are per chip, in one direction.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """What the roofline needs of one chip. None: not known, so nothing is said about time."""

    platform: Literal["tpu", "gpu", "cpu"]
    peak: float | None  # FLOP/s in bfloat16
    memory: int | None = None  # bytes that a program can have
    bandwidth: float | None = None  # bytes/s to that memory
    links: float | None = None  # bytes/s to the other chips of its slice or host
    network: float | None = None  # bytes/s to chips beyond
    per_host: int = 8  # chips


CHIPS: dict[str, Chip] = {
    "v4": Chip("tpu", 275e12),
    "v5e": Chip("tpu", 197e12, int(15.75 * GIB), 819e9, 100e9, 3.1e9, 4),
    "v5p": Chip("tpu", 459e12, int(95.74 * GIB), 2765e9, 300e9, 6.2e9, 4),
    "v6e": Chip("tpu", 918e12, int(31.25 * GIB), 1640e9, 224e9, 6.2e9, 4),
    "a100": Chip("gpu", 312e12),
    "h100": Chip("gpu", 989e12),
    "h200": Chip("gpu", 989e12, 150_754_820_096, 4800e9, 450e9, 50e9, 8),
    "b200": Chip("gpu", 2250e12),
    "cpu": Chip("cpu", None),
}
# `jax.Device.device_kind` -> chip. A device is a whole chip for all of them. Cards of other forms have other peaks.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}


def peak_of(devices: Sequence[Any]) -> float | None:
    """FLOP/s of all these jax devices together; None where one is of a kind whose peak is not known."""
    names = [DEVICE_KINDS.get(device.device_kind) for device in devices]
    peaks = [CHIPS[name].peak if name else None for name in names]
    return None if None in peaks else float(sum(peak for peak in peaks if peak))
