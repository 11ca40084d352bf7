"""Confident voting on completions made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdistill.errors import UserError
from mixdistill.generation.sampler import Generated
from mixdistill.generation.voting import Voting, lowest_mean, vote


def said(answer: int, *confidence: float) -> Generated:
    tokens = np.full(len(confidence), answer, np.int32)
    return Generated(tokens, np.zeros(len(confidence), np.float32), True, np.array(confidence, np.float32))


def pool(*completions: Generated):
    """The sampler: completion i is `completions[i]`, cut where the stop rule says."""
    calls = []

    def sample(first, count, stop):
        calls.append((first, count, stop.threshold))
        found = []
        for one in completions[first : first + count]:
            means = np.convolve(one.confidence, np.ones(stop.window) / stop.window, "valid")
            end = int(np.argmax(means < stop.threshold)) + stop.window if (means < stop.threshold).any() else None
            found.append(one._replace(tokens=one.tokens[:end], confidence=one.confidence[:end]))
        return found

    return sample, calls


def answer(one: Generated) -> str | None:
    return None if one.tokens[0] == 0 else str(one.tokens[0])


def test_by_hand():
    sample, calls = pool(said(1, 8, 2), said(2, 4, 4), said(2, 6, 6), said(1, 1, 9), said(1, 5, 5), said(2, 7, 7))
    # Warm-up, window 1: lowest 2 and 4; keep 50 percent: threshold 3. So the first completion does not vote.
    result = vote(sample, answer, Voting(warmup=2, budget=6, round_size=2, window=1, keep=50, consensus=0.99))
    # 2 has 4, all of the weight, after the warm-up.
    assert result.answer == "2"
    assert result.share == 1.0
    assert result.num_completions == 2
    assert result.threshold == 3
    assert calls == [(0, 2, -np.inf)]


def test_unsure_completions_are_stopped_and_counted():
    sample, calls = pool(said(1, 5, 5), said(2, 5, 5), said(1, 1, 9, 9, 9), said(1, 6, 6))
    result = vote(sample, answer, Voting(warmup=2, budget=4, round_size=2, window=1, keep=90, consensus=1.0))
    assert (result.answer, result.num_completions, result.num_stopped) == ("1", 4, 1)
    assert result.tokens == 2 + 2 + 1 + 2  # three tokens saved
    assert result.share == pytest.approx(11 / 16)
    assert calls[1] == (2, 2, 5.0)


def test_nobody_votes():
    sample, _ = pool(said(0, 5), said(0, 5))
    result = vote(sample, answer, Voting(warmup=2, budget=2, window=4))
    assert result.answer is None
    assert np.isnan(result.share)


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=30), st.integers(1, 8))
def test_lowest_mean_is_that_of_a_loop(values, window):
    groups = [values[i : i + window] for i in range(len(values) - window + 1)] or [values]
    assert lowest_mean(np.array(values), window) == pytest.approx(min(map(np.mean, groups)), abs=1e-6)


def test_bad_settings():
    for bad in ({"warmup": 5, "budget": 4}, {"keep": 0}, {"consensus": 1.5}, {"window": 0}):
        with pytest.raises(UserError, match=r"voting|keep"):
            Voting(**bad)
