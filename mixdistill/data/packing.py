"""Packing: which trace lies in which row, and where. Best fit, longest first; rows never overflow."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Item(NamedTuple):
    """A trace that waits for its place."""

    trace_id: int
    drawn_at: int  # train_step


class Place(NamedTuple):
    """A trace in its place."""

    trace_id: int
    row: int
    offset: int


# After this many train steps a trace goes first: longest-first alone would let short ones wait for ever.
PATIENCE = 4


def pack(
    items: Sequence[Item], footprint: np.ndarray, group: np.ndarray | None, rows: int, length: int, now: int
) -> tuple[list[Place], list[Item]]:
    """(places, items left over). With `group` (by trace_id) a row holds traces of one group alone.

    `footprint` is indexed by trace_id, in columns, each at most `length`.
    """
    order = sorted(items, key=lambda item: (now - item.drawn_at < PATIENCE, -footprint[item.trace_id], item))
    # (space left, row) in ascending order, for each group; rows that nobody has begun belong to no group yet.
    open_rows: dict[int | None, list[tuple[int, int]]] = {}
    fresh, places, left = list(range(rows - 1, -1, -1)), [], []
    for item in order:
        size, key = int(footprint[item.trace_id]), None if group is None else int(group[item.trace_id])
        spaces = open_rows.setdefault(key, [])
        at = bisect.bisect_left(spaces, (size, -1))
        if at < len(spaces):
            space, row = spaces.pop(at)
        elif fresh:
            space, row = length, fresh.pop()
        else:
            left.append(item)
            continue
        places.append(Place(item.trace_id, row, length - space))
        if space > size:
            bisect.insort(spaces, (space - size, row))
    return places, sorted(left, key=lambda item: (item.drawn_at, item.trace_id))
