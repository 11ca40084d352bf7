"""Rewards by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdistill.errors import UserError
from mixdistill.generation.rewards import rescaled, soft_overlong, step_similarity, weighted_sum, well_formed


def test_step_similarity_by_hand():
    # words: "a b c d" and "a b x d" share the blocks "a b" and "d": 2 * 3 / 8
    assert step_similarity("a b c d", "a b x d") == 0.75
    assert step_similarity("abcd", "abxd", level="char") == 0.75
    assert step_similarity("x=1", "x = 1", level="token") == 1.0
    assert step_similarity("x=1", "x = 1") == 0.0
    assert step_similarity(None, "a") == step_similarity(" ", "a") == -1.0
    assert step_similarity("a", "") == 0.0


def test_autojunk_breaks_long_steps():
    one, other = "a" * 250 + "b", "c" + "a" * 250
    assert step_similarity(one, other, level="char") == pytest.approx(500 / 502)
    assert step_similarity(one, other, level="char", autojunk=True) == 0.0


@given(st.text(alphabet="ab c", max_size=30), st.text(alphabet="ab c", max_size=30))
def test_step_similarity_is_a_share_or_malformed(model, expert):
    found = step_similarity(model, expert)
    assert found == -1.0 if not model.strip() else 0 <= found <= 1
    if model.strip():
        assert step_similarity(model, model) == 1.0


@pytest.mark.parametrize(("length", "reward"), [(0, 0), (80, 0), (90, -0.5), (100, -1), (500, -1)])
def test_soft_overlong(length, reward):
    assert soft_overlong(length, limit=100, cache=20) == reward


def test_format():
    assert well_formed("<think> a </think> 4")
    for text in ("4", "<think> a", "</think> a <think> 4", "<think></think>", "<think><think></think> 4"):
        assert not well_formed(text)


def test_weighted_sum_keeps_what_could_not_be_told():
    rewards = weighted_sum({"exact": [1, 0, np.nan], "length": [0, -1, 0]}, {"exact": 1.0, "length": 0.5})
    np.testing.assert_array_equal(rewards.total, np.float32([1, -0.5, np.nan]))
    assert set(rewards.parts) == {"exact", "length"}
    with pytest.raises(UserError, match="exact"):
        weighted_sum({"exact": [1]}, {"exakt": 1.0})


def test_rescaled():
    assert rescaled(lambda x: x, -1, 1)(0.5) == 0.75
    with pytest.raises(UserError, match="low"):
        rescaled(float, 1, 1)


def test_unknown_level():
    with pytest.raises(UserError, match="word"):
        step_similarity("a", "a", level="wrod")
