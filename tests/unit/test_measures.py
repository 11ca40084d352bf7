"""Measures of teachers: by hand, against slow loops over tokens, and on degenerate traces."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics import measures
from mixdistill.diagnostics.intervals import ratio_estimate
from mixdistill.diagnostics.measures import TraceScores, by_teacher, split_steps, trace_parts


def scores(logprob, rank=None, step=None, **more) -> TraceScores:
    logprob = np.array(logprob, np.float32)
    size = len(logprob)
    return TraceScores(
        logprob,
        np.ones(size, np.uint8) if rank is None else np.array(rank, np.uint8),
        more.pop("entropy", np.zeros(size, np.float32)),
        more.pop("confidence", np.arange(size, dtype=np.float32)),
        np.ones(size, np.int32) if step is None else np.array(step, np.int32),
        **more,
    )


def value(parts) -> float:
    return parts[0] / parts[1]


def test_by_hand():
    trace = scores([-1.0, -3.0, -2.0, -2.0], rank=[1, 200, 5, 1], step=[1, 1, 1, 2], correct=1.0)
    parts = trace_parts(trace._replace(alone=np.array([-3.0, -3.0, -3.0, -3.0])))
    assert parts["surprisal"] == (8.0, 4.0)
    assert value(parts["grape"]) == -2
    # min(rank, 100): 1 + 100 + 5 + 1 over 1 + 3 + 2 + 2; means 26.75 and 2.
    assert parts["rank_surprisal_ratio"] == (26.75, 2.0)
    assert value(parts["trace_rank_surprisal_ratio"]) == pytest.approx(107 / 8)
    # Without the first two tokens of each step only -2 is left.
    assert value(parts["aslec_drop"]) == pytest.approx(-2)
    assert value(parts["ifd"]) == pytest.approx(math.exp(2 - 3))
    assert value(parts["ifd_loss"]) == pytest.approx(2 / 3)
    assert value(parts["confidence"]) == 1.5
    assert value(parts["lowest_confidence"]) == 1.5  # shorter than the window: the plain mean
    assert parts["length"] == (4.0, 1.0)
    assert parts["accuracy"] == (1.0, 1.0)
    for absent in ("local_naturalness", "reversed_ifd", "reversed_ifd_loss"):
        assert math.isnan(parts[absent][0])


def test_local_naturalness_weighs_steps_equally():
    trace = scores([-1.0] * 4, step=[1, 1, 1, 2])
    parts = trace_parts(trace._replace(local=np.array([-1.0, -1.0, -1.0, -5.0])))
    assert value(parts["local_naturalness"]) == pytest.approx(-3)


def test_reversed_difficulty():
    trace = scores([-1.0], prompt=np.array([-4.0, -2.0]), reverse=np.array([-1.0, -1.0]))
    parts = trace_parts(trace)
    assert value(parts["reversed_ifd"]) == pytest.approx(math.exp(1 - 3))
    assert value(parts["reversed_ifd_loss"]) == pytest.approx(1 / 3)


def test_degenerate_traces_are_no_data():
    parts = trace_parts(scores([]))
    assert parts["length"] == (0.0, 1.0)
    assert all(math.isnan(parts[name][0]) for name in measures.MEASURES if name not in ("length",))
    certain = trace_parts(scores([0.0, 0.0]))  # no surprisal at all to divide by
    found = by_teacher([certain], np.array([0]), np.array([0]), ["a"], resamples=10)["a"]
    assert math.isnan(found["rank_surprisal_ratio"].value)
    assert found["surprisal"].value == 0


def test_teachers_are_kept_apart_and_absent_measures_left_out():
    parts = [trace_parts(scores([-1.0, -1.0])), trace_parts(scores([-3.0])), trace_parts(scores([-5.0]))]
    found = by_teacher(parts, np.array([0, 1, 1]), np.array([0, 0, 1]), ["a", "b", "c"], resamples=50)
    assert found["a"]["surprisal"].value == 1
    assert found["b"]["surprisal"].value == 4
    assert found["b"]["length"].count == 2
    assert math.isnan(found["c"]["surprisal"].value)
    assert "ifd" not in found["a"]
    assert "accuracy" not in found["a"]


def test_one_problem_has_no_width():
    one = ratio_estimate(np.array([1.0, 3.0]), np.array([1.0, 1.0]), np.array([4, 4]))
    assert (one.value, one.low, one.high, one.count) == (2, 2, 2, 2)
    none = ratio_estimate(np.array([np.nan]), np.array([1.0]), np.array([0]))
    assert math.isnan(none.value)
    assert none.count == 0


def test_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        x = random.normal(1, 1, 60)
        found = ratio_estimate(x, np.ones(60), np.arange(60), resamples=200, seed=seed)
        hits += found.low <= 1 <= found.high
    assert 178 <= hits <= 198  # 95 % of 200, three standard deviations and the bootstrap's usual shortfall


def test_interval_resamples_problems_and_not_traces():
    # 50 copies of each of 4 problems: as traces they would look like 200 draws.
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 50)
    by_problem = ratio_estimate(values, np.ones(200), np.repeat(np.arange(4), 50))
    by_trace = ratio_estimate(values, np.ones(200), np.arange(200))
    assert by_problem.high - by_problem.low > 4 * (by_trace.high - by_trace.low)


def slow_ratio(pairs, problem, draws):
    """The same bootstrap written as loops."""
    groups = sorted(set(problem))
    values = []
    for times in draws:
        top = sum(
            t * pairs[i][0] for g, t in zip(groups, times, strict=True) for i in range(len(pairs)) if problem[i] == g
        )
        low = sum(
            t * pairs[i][1] for g, t in zip(groups, times, strict=True) for i in range(len(pairs)) if problem[i] == g
        )
        values.append(top / low)
    return np.quantile(values, [0.025, 0.975])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 5), st.integers(0, 3)), min_size=1, max_size=10))
def test_interval_agrees_with_loops(rows):
    above, below, problem = (np.array(column) for column in zip(*rows, strict=True))
    found = ratio_estimate(above, below, problem, resamples=40, seed=3)
    size = len(set(problem.tolist()))
    draws = np.random.default_rng(3).multinomial(size, np.full(size, 1 / size), 40)
    low, high = slow_ratio([row[:2] for row in rows], problem.tolist(), draws)
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert (found.low, found.high) == pytest.approx((low, high))


traces = st.lists(st.tuples(st.floats(-8, -0.01), st.integers(1, 250), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(traces)
def test_parts_agree_with_loops_over_tokens(tokens):
    logprob, rank, new_step = zip(*tokens, strict=True)
    step = np.cumsum([0, *new_step[1:]]) + 1
    parts = trace_parts(scores(logprob, rank=np.minimum(rank, 100), step=step))
    exact = [float(np.float32(x)) for x in logprob]
    ranks = [min(r, 100) for r in rank]
    assert value(parts["trace_rank_surprisal_ratio"]) == pytest.approx(sum(ranks) / -sum(exact), rel=1e-4)
    inside = [x for i, x in enumerate(exact) if sum(s == step[i] for s in step[:i]) >= 2]
    if inside:
        assert value(parts["aslec_drop"]) == pytest.approx(sum(inside) / len(inside), rel=1e-4)
    else:
        assert math.isnan(parts["aslec_drop"][0])
    assert value(parts["surprisal"]) == pytest.approx(-sum(exact) / len(exact), rel=1e-5)


def test_steps_are_split_where_the_number_changes():
    assert [list(s) for s in split_steps(np.array([1, 2, 3, 4]), np.array([1, 1, 3, 3]))] == [[1, 2], [3, 4]]
    assert split_steps(np.array([]), np.array([])) == []
