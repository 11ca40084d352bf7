"""Token sequences of any length into packed batches of few shapes: for one pass over data, in no particular order.

Rows have 256, 512, ... columns, and a batch about as many tokens whatever its width: short sequences do not pay for the
attention of long ones, and only a handful of shapes is compiled.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.data.fields import Batch

NARROWEST = 256  # columns


class Scored(NamedTuple):
    """A sequence, and from where on its tokens are scored (at least 1: the first has nothing before it)."""

    tokens: np.ndarray  # int32 [n]
    start: int

    @property
    def columns(self) -> int:
        """Inputs: all tokens but the last."""
        return len(self.tokens) - 1


class Spot(NamedTuple):
    """Where a sequence lies in a batch."""

    sequence: int
    row: int
    offset: int


def batches(sequences: Sequence[Scored], num_tokens: int, multiple: int = 1) -> Iterator[tuple[Batch, list[Spot]]]:
    """Packed batches of about `num_tokens` columns in all, the number of rows a multiple of `multiple`. Fields: tokens,
    target, segment_id, position, and valid where a target is scored. A sequence of one token is left out."""
    waiting = [i for i, sequence in enumerate(sequences) if sequence.columns > 0]
    longest = max((sequences[i].columns for i in waiting), default=0)
    width = NARROWEST
    while waiting:
        rows = max(num_tokens // width // multiple, 1) * multiple
        last = width >= longest
        fitting = [i for i in waiting if sequences[i].columns <= width]
        packed = fill_rows(fitting, [sequences[i].columns for i in fitting], width)
        whole = len(packed) if last else len(packed) // rows * rows
        for first in range(0, whole, rows):
            yield lay_out(sequences, packed[first : first + rows], rows, width)
        # What does not fill a batch of this width waits for the next one.
        done = {i for row in packed[:whole] for i, _ in row}
        waiting = [i for i in waiting if i not in done]
        width *= 2


Row = list[tuple[int, int]]  # (sequence, offset)


def fill_rows(numbers: list[int], sizes: list[int], width: int) -> list[Row]:
    """Best fit, longest first."""
    rows: list[Row] = []
    spaces: list[tuple[int, int]] = []  # (left free, row), ascending
    for size, number in sorted(zip(sizes, numbers, strict=True), key=lambda pair: -pair[0]):
        at = bisect.bisect_left(spaces, (size, -1))
        if at < len(spaces):
            space, row = spaces.pop(at)
        else:
            space, row = width, len(rows)
            rows.append([])
        rows[row].append((number, width - space))
        bisect.insort(spaces, (space - size, row))
    return rows


def lay_out(sequences: Sequence[Scored], rows: list[Row], num_rows: int, width: int) -> tuple[Batch, list[Spot]]:
    """One batch [num_rows, width] of these rows; those that are not given are padding."""
    batch = {name: np.zeros((num_rows, width), np.int32) for name in ("tokens", "target", "segment_id", "position")}
    batch["valid"] = np.zeros((num_rows, width), bool)
    spots = []
    for r, row in enumerate(rows):
        for segment, (number, offset) in enumerate(row, start=1):
            tokens, start = sequences[number]
            span = slice(offset, offset + len(tokens) - 1)
            batch["tokens"][r, span] = tokens[:-1]
            batch["target"][r, span] = tokens[1:]
            batch["segment_id"][r, span] = segment
            batch["position"][r, span] = np.arange(len(tokens) - 1)
            batch["valid"][r, offset + start - 1 : span.stop] = True
            spots.append(Spot(number, r, offset))
    return batch, spots
