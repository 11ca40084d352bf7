"""A few cases of every fuzz target, and those that once failed. `scripts/fuzz.py` runs them by the hundred thousand."""

import random

import pytest

from tests.property.fuzz_targets import TARGETS
from tests.property.mutation import mutate


@pytest.mark.parametrize("name", TARGETS)
def test_only_refusals(name, tmp_path):
    target, rng = TARGETS[name], random.Random(name)
    for case in target.corpus:
        target.run(case, tmp_path)
    for _ in range(200):
        target.run(mutate(rng, target.corpus, target.pieces), tmp_path)


# What was found, by target: each of these raised something else than a refusal.
HEADER = b"MDT1" + (1).to_bytes(4, "little") + bytes(16)
STREAM = TARGETS["reader: files"].corpus[-2]  # Arrow; its offsets are 0, 3, 6
REGRESSIONS: list[tuple[str, bytes]] = [
    ("reader: files", STREAM.replace(bytes([0, 0, 0, 0, 3, 0, 0, 0]), bytes([0, 0, 0, 0, 255, 255, 255, 255]))),
    ("unfinished prepare", bytes(8)),  # a length of zero has the checksum of nothing
    ("record", HEADER + bytes(8)),  # no JSON where the trace should be
    ("record", HEADER + bytes(8) + b"[]"),
    ("record", HEADER + bytes(8) + b'{"schema": 1, "steps": 1}'),
    ("record", HEADER + bytes(8) + b"[" * 100_000),
    ("record", b"MDT1" + (1).to_bytes(4, "little") + b"\xff" * 16 + bytes(8)),  # a prompt longer than the trace
    ("weights index", b'{"weight_map": {"a": ""}}'),
    ("weights index", b'{"weight_map": {"a": "' + b"2" * 300 + b'"}}'),  # longer than a name of a file may be
]


@pytest.mark.parametrize(("name", "case"), REGRESSIONS)
def test_what_once_failed(name, case, tmp_path):
    TARGETS[name].run(case, tmp_path)
