"""A few cases of every fuzz target, and those that once failed. `scripts/fuzz.py` runs them by the hundred thousand."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixdistill.errors import UserError
from tests.property.fuzz_targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_only_refusals(name, data, tmp_path_factory):
    target, strategy = TARGETS[name]
    target(data.draw(strategy), tmp_path_factory.mktemp("fuzz"))


# What was found, by target: each of these raised something else than a refusal.
HEADER = b"MDT1" + (1).to_bytes(4, "little") + bytes(16)
REGRESSIONS: list[tuple[str, object]] = [
    ("unfinished prepare", bytes(8)),  # a length of zero has the checksum of nothing
    ("record", HEADER + bytes(8)),  # no JSON where the trace should be
    ("record", HEADER + bytes(8) + b"[]"),
    ("record", HEADER + bytes(8) + b'{"schema": 1, "steps": 1}'),
    ("record", HEADER + bytes(8) + b"[" * 100_000),
    ("record", b"MDT1" + (1).to_bytes(4, "little") + b"\xff" * 16 + bytes(8)),  # a prompt longer than the trace
]


@pytest.mark.parametrize(("name", "case"), REGRESSIONS)
def test_what_once_failed(name, case, tmp_path):
    try:
        TARGETS[name][0](case, tmp_path)
    except UserError as error:
        pytest.fail(f"the target itself handles refusals: {error}")
