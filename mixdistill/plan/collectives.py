"""What a compiled program says to other devices: collectives by kind, with loops counted as often as they run."""

import collections
import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
BYTES |= {"s64": 8, "u64": 8}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")


class Traffic(NamedTuple):
    """Of one kind, in one run of the program, on one device."""

    count: int  # how often it runs
    sent: float  # bytes that leave the device in a ring
    written: int  # how often it stands in the text


def collectives(text: str, num_devices: int) -> dict[str, Traffic]:
    """By kind, from the text of an optimised program."""
    bodies, entry = _computations(text)
    times = _times(bodies, entry)
    found = {kind: [0, 0.0, 0] for kind in KINDS}
    for name, lines in bodies.items():
        for line in lines:
            if (op := _OP.search(line)) is None:
                continue
            kind, total = op[2], found[op[2]]
            total[0] += times[name]
            total[1] += times[name] * _sent(kind, _size(op[1], bool(op[3])), _group(line, num_devices))
            total[2] += 1
    return {kind: Traffic(*total) for kind, total in found.items() if total[2]}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> collections.Counter[str]:
    """How often each computation runs. Branches count as if all were taken; a loop whose end is computed (over tiles
    of live tokens) counts once."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies.get(name, ()):
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"%?([\w.\-]+)", branches)
            for inner in called:
                visit(inner, count * _trips(line, bodies))

    visit(entry, 1)
    return times


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Of a loop: as the compiler noted it, or the constant that its condition compares with. 1 for anything else."""
    if (condition := _CONDITION.search(line)) is None:
        return 1
    if noted := _TRIPS.search(line):
        return int(noted[1])
    limits = [int(found[1]) for inner in bodies.get(condition[1], ()) if (found := _CONSTANT.search(inner))]
    return limits[0] if len(limits) == 1 else 1


def _size(type_text: str, is_start: bool) -> int:
    """Bytes of the result. What starts asynchronously gives (operands, results): the results are counted."""
    if is_start and type_text.startswith("(("):
        type_text = type_text.split("), (", 1)[-1]
    sizes = [
        BYTES.get(kind, 1) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in _SHAPE.findall(type_text)
    ]
    if is_start and type_text.startswith("(") and len(sizes) > 1:
        return max(sizes)
    return sum(sizes)


def _group(line: str, num_devices: int) -> int:
    if found := _GROUPS.search(line):
        return int(found[2])
    if found := _MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := _LISTED.search(line):
        return len(found[1].split(",")) if found[1] else num_devices
    return num_devices


def _sent(kind: str, size: int, group: int) -> float:
    """Bytes that one device sends, of a result of `size`, in a ring of `group`."""
    others = (group - 1) / group
    share = {"all-reduce": 2 * others, "all-gather": others, "all-to-all": others, "reduce-scatter": group - 1.0}
    return size * share.get(kind, 1.0)
