"""Packing: which of the traces that wait fill a row best. Exact, and the one that has waited longest always goes."""

from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """A trace in its place."""

    trace_id: int
    row: int
    offset: int


def fill(sizes: Sequence[int], space: int) -> list[int]:
    """Indices of the `sizes` that leave the least of `space` free; 0, the oldest, is one, and older ones are preferred.

    Sizes are positive and the first one fits. Dynamic programming over sums: bit s of `reached[i]` is set where some of
    the sizes 0..i add up to s.
    """
    within = (1 << space + 1) - 1
    reached = [1 << sizes[0]]
    for size in sizes[1:]:
        if reached[-1] >> space:  # nothing is left free
            break
        reached.append(reached[-1] | reached[-1] << size & within)
    total, chosen = reached[-1].bit_length() - 1, []
    for i in range(len(reached) - 1, 0, -1):
        if not reached[i - 1] >> total & 1:
            chosen.append(i)
            total -= sizes[i]
    return [0, *reversed(chosen)]
