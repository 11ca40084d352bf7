"""Measures of one recorded trace by hand, on degenerate input, and the packed signals against them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.errors import UserError
from mixdistill.signals import agreement, confidence
from mixdistill.signals.steps import last_mean, lowest_mean

# One row: trace 1 with a prompt token, steps 1 (3 tokens) and 2 (2 tokens); trace 2 with one step; padding.
STEP = jnp.array([[0, 1, 1, 1, 2, 2, 1, 1, 0]])
VALID = STEP > 0
TRACE = jnp.array([[0, 0, 0, 0, 0, 0, 1, 1, 2]])
STEPS = jnp.array([[0, 1, 1, 1, 2, 2, 3, 3, 4]])


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got)[VALID], np.asarray(expected, np.float32), rtol=1e-6)


def test_groups_by_hand():
    c = [1.0, 3.0, 5.0, 1.0]
    np.testing.assert_allclose(confidence.group_means(c, 2), [2, 4, 3])
    assert confidence.lowest_group(c, 2) == 2
    assert confidence.bottom_groups(c, 2, 0.1) == 2  # at least one
    assert confidence.bottom_groups(c, 2, 0.7) == 2.5
    assert confidence.tail(c, 2) == 3
    assert confidence.tail(c, 99) == confidence.lowest_group(c, 99) == 2.5


def test_online_threshold_keeps_that_many_percent():
    minima = np.arange(1.0, 12.0)
    assert confidence.online_threshold(minima, 10) == 10
    assert confidence.online_threshold(minima, 90) == 2
    assert (minima >= confidence.online_threshold(minima, 50)).sum() == 6


def test_no_tokens_are_no_data():
    assert confidence.group_means([], 4).size == 0
    none = [
        confidence.lowest_group([], 4),
        confidence.bottom_groups([], 4, 0.1),
        confidence.tail([], 4),
        confidence.online_threshold([], 10),
        agreement.rank_surprisal_ratio([], []),
        agreement.dataset_rank_surprisal_ratio([]),
        agreement.dataset_rank_surprisal_ratio([([], [])]),
        agreement.instruction_following_difficulty([], [1.0]),
        agreement.instruction_following_difficulty([0.0], [0.0], kind="loss"),
        agreement.local_naturalness([]),
        agreement.local_naturalness([[], []]),
        agreement.aslec_drop([], 2),
        agreement.aslec_drop([[-1.0, -2.0], []], 2),
    ]
    assert all(math.isnan(value) for value in none), none


def test_a_nan_is_no_number():
    c = [1.0, float("nan"), 3.0]
    values = [confidence.lowest_group(c, 2), confidence.bottom_groups(c, 1, 1.0), confidence.tail(c, 2)]
    values += [
        agreement.rank_surprisal_ratio([1, 2], [1.0, math.nan]),
        agreement.local_naturalness([[math.nan], [1.0]]),
    ]
    assert all(math.isnan(value) for value in values), values


def test_rank_surprisal_ratios_by_hand():
    assert agreement.rank_surprisal_ratio([1, 200, 5], [0.5, 3.0, 1.5]) == 106 / 5
    assert agreement.rank_surprisal_ratio([1, 200, 5], [0.5, 3.0, 1.5], max_rank=10) == 16 / 5
    assert agreement.rank_surprisal_ratio([1], [0.0]) == math.inf
    # Means, not pooled tokens: (2 + 4) / (1 + 2), where pooling gives (1 + 3 + 4) / (0.5 + 1.5 + 2).
    traces = [([1, 3], [0.5, 1.5]), ([4], [2.0]), ([], [])]
    assert agreement.dataset_rank_surprisal_ratio(traces) == 2


def test_difficulty_by_hand():
    assert agreement.instruction_following_difficulty([1.0, 2.0], [2.0]) == pytest.approx(math.exp(-0.5))
    assert agreement.instruction_following_difficulty(1.5, 2.0, kind="loss") == 0.75
    assert agreement.instruction_following_difficulty(5000.0, 0.0) == math.inf
    with pytest.raises(UserError, match="unknown kind 'loses'; did you mean 'loss'"):
        agreement.instruction_following_difficulty(1.0, 1.0, kind="loses")  # type: ignore[arg-type]


def test_naturalness_by_hand():
    assert agreement.local_naturalness([[-1.0, -3.0], [-4.0], []]) == -3
    assert agreement.aslec_drop([[-9.0, -9.0, -1.0], [-9.0, -9.0, -2.0, -3.0], [-9.0]], 2) == -2


def test_bottom_and_tail_of_steps_and_traces():
    c = jnp.array([[99.0, 6, 2, 4, 8, 1, 5, 3, 99]])
    bottom, tail = confidence.step_bottom_confidence, confidence.step_tail_confidence
    close(bottom(c, VALID, STEPS, window=1, fraction=0.7), [3, 3, 3, 1, 1, 3, 3])  # two of three, one of two
    close(bottom(c, VALID, STEPS, window=3), [4, 4, 4, 4.5, 4.5, 4, 4])  # shorter steps: their mean
    close(tail(c, VALID, STEPS, length=2), [3, 3, 3, 4.5, 4.5, 4, 4])
    close(confidence.trace_bottom_confidence(c, VALID, TRACE, window=2, fraction=0.5), [3.5] * 5 + [4, 4])
    close(confidence.trace_tail_confidence(c, VALID, TRACE, length=3), [13 / 3] * 5 + [4, 4])


def test_steps_of_recorded_log_probabilities():
    recorded = jnp.array([[jnp.nan, -1, -2, jnp.nan, -4, -2, jnp.nan, jnp.nan, jnp.nan]])
    close(confidence.step_teacher_logprob(recorded, VALID, STEPS), [-1.5] * 3 + [-3, -3] + [np.nan] * 2)


def test_difficulty_and_naturalness_signals_by_hand():
    logprob = jnp.array([[-9.0, -1, -2, -3, -4, -5, -1, -1, -9]])
    alone = 2 * logprob
    close(agreement.trace_difficulty(logprob, alone, VALID, TRACE), [np.exp(-3)] * 5 + [np.exp(-1)] * 2)
    close(agreement.trace_difficulty(logprob, alone, VALID, TRACE, kind="loss"), [0.5] * 7)
    close(agreement.trace_local_naturalness(logprob, VALID, STEPS, TRACE), [-3.25] * 5 + [-1] * 2)
    close(agreement.trace_headless_logprob(logprob, VALID, STEPS, TRACE, head=1), [-10 / 3] * 5 + [-1] * 2)
    close(agreement.trace_headless_logprob(logprob, VALID, STEPS, TRACE), [-3] * 5 + [0] * 2)
    rank = jnp.array([[9, 1, 2, 3, 4, 5, 6, 200, 9]])
    close(agreement.step_rank_surprisal(rank, -logprob, VALID, STEPS), [1, 1, 1, 1, 1, 53, 53])


def test_lowest_mean_of_nothing_is_zero_and_of_a_nan_lets_nothing_through():
    x = jnp.array([[1.0, jnp.nan, 2.0]])
    run = jnp.array([[0, 0, 1]])
    assert lowest_mean(x, jnp.zeros_like(x, bool), run, 0.5).tolist() == [[0, 0, 0]]
    assert lowest_mean(x, jnp.ones_like(x, bool), run, 1.0).tolist() == [[-np.inf, -np.inf, 2]]
    assert last_mean(x, jnp.zeros_like(x, bool), run, 2).tolist() == [[0, 0, 0]]


@jax.jit
def packed(c, valid, run, fraction):
    return (
        confidence.trace_lowest_confidence(c, valid, run, window=WINDOW)[0, 0],
        confidence.trace_tail_confidence(c, valid, run, length=WINDOW)[0, 0],
        confidence.trace_bottom_confidence(c, valid, run, window=WINDOW, fraction=fraction)[0, 0],
    )


WINDOW = 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.125, 20, width=16), min_size=1, max_size=11), st.floats(0.05, 1))
def test_signals_agree_with_the_measures_of_one_trace(values, fraction):
    c = np.zeros((1, 12), np.float32)
    c[0, : len(values)] = values
    valid = (np.arange(12) < len(values))[None]
    lowest, tail, bottom = packed(c, valid, (~valid).astype(np.int32), fraction)
    np.testing.assert_allclose(lowest, confidence.lowest_group(values, WINDOW), rtol=1e-5)
    np.testing.assert_allclose(tail, confidence.tail(values, WINDOW), rtol=1e-5)
    groups = max(len(values) - WINDOW + 1, 1)
    if abs(fraction * groups - round(fraction * groups)) > 1e-3:  # float32 may floor to the other side
        np.testing.assert_allclose(bottom, confidence.bottom_groups(values, WINDOW, fraction), rtol=1e-5)
