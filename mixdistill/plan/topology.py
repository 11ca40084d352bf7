"""Machines that a recipe can be planned for, by the names that people rent them under."""

import re
from typing import NamedTuple

from mixdistill.chips import CHIPS, Chip
from mixdistill.errors import UserError, unknown

# How chips are wired: the shapes that libtpu knows. A v5p is counted in cores, two a chip.
SHAPES: dict[str, dict[int, str]] = {
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v6e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v5p": {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8"},
    "h200": {8: "1x1x8", 16: "1x2x8", 32: "1x4x8", 64: "1x8x8"},
    "cpu": {1: "", 2: "", 4: "", 8: ""},
}


class Topology(NamedTuple):
    """`count` chips in each of `slices`."""

    name: str
    kind: str
    shape: str
    chips: int
    slices: int

    @property
    def chip(self) -> Chip:
        """Of one chip."""
        return CHIPS[self.kind]

    @property
    def hosts(self) -> int:
        """Machines, each with its share of the chips."""
        return max(1, self.chips // self.chip.per_host)


def known() -> list[str]:
    """Names of one slice; "2xv5e-16" is two of them."""
    return [f"{kind}-{count}" for kind, shapes in SHAPES.items() for count in shapes]


def find(name: str) -> Topology:
    """The topology of that name. Raises `UserError`, naming those that are known."""
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)-(\d+)", name)
    slices, kind, count = (int(found[1] or 1), found[2], int(found[3])) if found else (0, "", 0)
    if count not in SHAPES.get(kind, {}):
        raise unknown("topology", name, known())
    if slices < 1 or (slices > 1 and CHIPS[kind].platform != "tpu"):
        raise UserError(f"topology {name}: slices are counted for TPUs alone, and from 1")
    chips = count // 2 if kind == "v5p" else count
    return Topology(name, kind, SHAPES[kind][count], chips * slices, slices)
