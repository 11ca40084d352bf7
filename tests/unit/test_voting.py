"""Confident voting on completions made by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdistill.errors import UserError
from mixdistill.generation.policy import Policy
from mixdistill.generation.sampler import Generated, LowConfidence
from mixdistill.generation.voting import Voting, lowest_mean, sampler_of, vote
from mixdistill.students import families
from mixdistill.students.decoder import make_student


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


def test_a_student_votes():
    """Against the sampler itself: stopped completions are prefixes of what they would have been."""
    student = make_student(dataclasses.replace(families.tiny(17), layers=1, unroll=1))
    params = student.init(jax.random.key(2))
    settings = {"max_new": 8, "eos_id": 1, "policy": Policy(temperature=2.0), "seed": 4}
    sample = sampler_of(student, params, [5, 6, 7], **settings)
    whole = sample(0, 8, LowConfidence(2, -np.inf, 4))
    again = [*sample(0, 4, LowConfidence(2, -np.inf, 4)), *sample(4, 4, LowConfidence(2, -np.inf, 4))]
    assert [one.tokens.tolist() for one in whole] == [one.tokens.tolist() for one in again]
    voting = Voting(warmup=4, budget=8, round_size=4, window=2, keep=50, consensus=1.0, top_k=4)
    result = vote(sample, lambda one: str(one.tokens), voting)
    lowest = [lowest_mean(one.confidence, 2) for one in whole]
    threshold = np.percentile(lowest[:4], 50)
    assert result.threshold == pytest.approx(threshold)
    assert result.num_stopped == sum(value < threshold for value in lowest[4:]) > 0
    kept = [len(one.tokens) for i, one in enumerate(whole) if i < 4 or lowest[i] >= threshold]
    assert result.saved == pytest.approx(np.mean(kept) * 8 - result.tokens)
    assert result.tokens < sum(len(one.tokens) for one in whole)
