"""Safetensors files, written one tensor at a time: the header needs shapes alone, so no file is ever whole in memory.
(The library reads piece by piece, but writes what it holds.)"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BLOCK = 2**24  # bytes of a tensor that are copied at a time


class Spec(NamedTuple):
    """Of a tensor that is to be written."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def write(path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """`tensors` come in the order of `specs`, as arrays or views of any memory layout and kind of float."""
    pending = iter(tensors)
    with path.open("wb") as file:
        file.write(_header(specs))
        for name, spec in specs.items():
            given, value = next(pending)
            assert (name, spec.shape) == (given, value.shape), name
            for block in _blocks(value):
                file.write(np.ascontiguousarray(block, spec.dtype).view(np.uint8).data)
            del value, block  # or they keep what they are views of, while the next one is made
    assert next(pending, None) is None


def _header(specs: Mapping[str, Spec]) -> bytes:
    entries, start = {}, 0
    for name, spec in specs.items():
        ends = [start, start + spec.num_bytes]
        entries[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": ends}
        start = ends[1]
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _blocks(value: np.ndarray) -> Iterable[np.ndarray]:
    """Rows of `value`, so many that a copy of them is small."""
    value = np.atleast_1d(value)
    rows = max(1, BLOCK // max(1, value[:1].nbytes))
    return (value[start : start + rows] for start in range(0, len(value), rows))
