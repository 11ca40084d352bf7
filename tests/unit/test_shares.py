"""A measure as shares of a mixture, by hand and at its edges."""

import math

import numpy as np
import pytest

from mixdistill.diagnostics.shares import shares
from mixdistill.errors import UserError


def rows(measure: str, *values: float | None) -> dict:
    return {f"t{i}": {"measures": {measure: {"value": value}}} for i, value in enumerate(values)}


def test_low_grace_gets_more_by_hand():
    found = shares(rows("grace", 1.0, 3.0), "grace", temperature=2.0)  # one standard deviation either side
    expected = math.exp(0.5) / (math.exp(0.5) + math.exp(-0.5))
    assert found == pytest.approx({"t0": expected, "t1": 1 - expected})


def test_high_grape_gets_more_and_scale_does_not_matter():
    small, large = (shares(rows("grape", *(k * np.array([-2.0, -1.0, -0.5]))), "grape") for k in (1, 1000))
    assert list(small) == sorted(small, key=small.__getitem__)
    assert small == pytest.approx(large)


def test_no_data_is_the_mean_and_equal_values_are_equal():
    found = shares(rows("grace", 1.0, None, 3.0), "grace")
    assert found["t0"] > found["t1"] > found["t2"]
    assert shares(rows("grace", 2.0, 2.0, math.nan), "grace") == pytest.approx(dict.fromkeys(("t0", "t1", "t2"), 1 / 3))


@pytest.mark.parametrize(
    ("teachers", "measure", "temperature", "message"),
    [
        (rows("grace", 1.0, 2.0), "gracce", 1.0, "did you mean 'grace'"),
        (rows("length", 1.0, 2.0), "length", 1.0, "'length'"),
        (rows("grace", 1.0, None), "grace", 1.0, "1 of 2 teachers have grace"),
        ({"a": {}, "b": {"measures": {}}}, "grace", 1.0, "0 of 2"),
        (rows("grace", 1.0, 2.0), "grace", 0.0, "temperature is 0"),
    ],
)
def test_what_cannot_be_shared_out_is_said(teachers, measure, temperature, message):
    with pytest.raises(UserError, match=message):
        shares(teachers, measure, temperature=temperature)
