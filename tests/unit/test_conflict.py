"""Continuation conflict against a slow reference and by hand; PCGrad by hand."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics import conflict
from mixdistill.diagnostics.conflict import (
    _around,
    continuation_conflict,
    count_continuations,
    project_conflicts,
    worst_contexts,
)

tokens = st.lists(st.integers(0, 3), max_size=9).map(lambda x: np.array(x, np.int32))
corpora = st.lists(st.lists(tokens, max_size=8), min_size=2, max_size=4)


def slow_score(first, second, width):
    """The definition, with dictionaries."""

    def half(traces):
        after = collections.defaultdict(collections.Counter)
        for trace in traces:
            for i in range(width, len(trace)):
                after[tuple(trace[i - width : i])][int(trace[i])] += 1
        return after

    def js(p, q):
        total = 0.0
        for token in p.keys() | q.keys():
            x, y = p[token] / p.total(), q[token] / q.total()
            total += sum(v / 2 * math.log2(2 * v / (x + y)) for v in (x, y) if v)
        return total

    cut = [(t[: len(t) // 2], t[len(t) // 2 :]) for t in (first, second)]
    (a1, a2), (b1, b2) = [tuple(map(half, pair)) for pair in cut]
    size = [sum(c.total() for h in pair for c in h.values()) for pair in ((a1, a2), (b1, b2))]
    score = shared = 0.0
    for c in a1.keys() & a2.keys() & b1.keys() & b2.keys():
        mass = min((a1[c].total() + a2[c].total()) / size[0], (b1[c].total() + b2[c].total()) / size[1])
        across = (js(a1[c], b2[c]) + js(a2[c], b1[c])) / 2
        score += mass * (across - (js(a1[c], a2[c]) + js(b1[c], b2[c])) / 2)
        shared += mass
    empty = min(len(first), len(second)) < 2
    return (math.nan if empty else score / max(shared, 0.02)), shared


@settings(max_examples=150, deadline=None)
@given(corpora, st.integers(1, 3))
def test_equals_the_definition(corpora, width):
    found = continuation_conflict({str(k): traces for k, traces in enumerate(corpora)}, width=width)
    for i in range(len(corpora)):
        assert found.score[i, i] == 0
        for j in range(i):
            score, shared = slow_score(corpora[i], corpora[j], width)
            np.testing.assert_allclose(found.score[[i, j], [j, i]], score, atol=1e-12)
            if not math.isnan(score):
                np.testing.assert_allclose(found.shared[[i, j], [j, i]], shared, atol=1e-12)


def array(*tokens):
    return np.array(tokens, np.int32)


def test_two_teachers_that_always_disagree_are_one_bit_apart():
    found = continuation_conflict({"a": [array(1, 2, 3)] * 4, "b": [array(1, 2, 4)] * 4})
    assert found.between("a", "b") == pytest.approx(1.0)
    assert found.shared[0, 1] == pytest.approx(1.0)


def test_chance_within_a_teacher_is_taken_off():
    # Both teachers write 3 or 4 after (1, 2), and their halves differ as much as they do.
    mixed = [array(1, 2, 3), array(1, 2, 4)] * 2
    assert continuation_conflict({"a": mixed, "b": mixed[::-1]}).between("a", "b") == pytest.approx(0.0, abs=1e-12)


def test_a_pair_that_hardly_shares_anything_is_hardly_in_conflict():
    alone = [array(*range(10, 110))] * 2
    traces = {"a": [*alone, array(1, 2, 3)] * 2, "b": [*alone[:0], *[array(*range(200, 300))] * 2, array(1, 2, 4)] * 2}
    found = continuation_conflict(traces)
    mass = 1 / (2 * 98 + 1)
    assert found.shared[0, 1] == pytest.approx(mass)
    assert found.between("a", "b") == pytest.approx(mass / conflict.FLOOR)


def test_the_first_tokens_of_a_trace_are_no_conflict():
    found = continuation_conflict({"a": [array(1, 2, 3, 4)] * 4, "b": [array(2, 1, 3, 4)] * 4})
    assert found.between("a", "b") == 0
    assert found.shared[0, 1] == 0


def test_no_data_is_not_zero():
    found = continuation_conflict({"a": [array(1, 2, 3)] * 4, "one": [array(1, 2, 3)], "none": []})
    assert np.isnan(found.score[~np.eye(3, dtype=bool)]).all()


def test_a_teacher_without_reasoning_shares_nothing_and_conflicts_with_nobody():
    found = continuation_conflict({"a": [array(1, 2, 3)] * 4, "terse": [array(3)] * 4})
    assert found.between("a", "terse") == 0
    assert found.shared[0, 1] == 0


def test_worst_contexts_name_what_either_teacher_writes():
    common = [array(5, 6, 7)] * 4
    counts = count_continuations({"a": [array(1, 2, 3), *common] * 2, "b": [array(1, 2, 4), *common] * 2})
    (clash,) = worst_contexts(counts, "a", "b")
    assert clash.context == (1, 2)
    assert clash.share == pytest.approx(1.0)
    assert clash.after == (((3, 1.0),), ((4, 1.0),))


def test_a_sample_of_contexts_is_the_same_for_all_teachers_and_close_to_the_whole():
    random = np.random.default_rng(0)
    half = {
        name: [np.append(random.integers(0, 40, 2), end) for _ in range(8000)] for name, end in (("a", 1), ("b", 2))
    }
    both = half | {"c": half["a"][::2] + half["b"][::2]}
    whole = continuation_conflict(both)
    part = conflict.conflict_matrix(count_continuations(both, max_events=6000))
    assert count_continuations(both, max_events=6000).totals.sum() < 9000
    np.testing.assert_allclose(part.score, whole.score, atol=0.1)


def test_pcgrad_projects_only_what_opposes():
    first, second = project_conflicts([np.array([1.0, 0.0]), np.array([-1.0, 1.0])])
    np.testing.assert_allclose(first, [0.5, 0.5])
    np.testing.assert_allclose(second, [0.0, 1.0])
    unchanged = project_conflicts([np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.zeros(2)])
    np.testing.assert_array_equal(unchanged, [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])


def test_pcgrad_takes_the_others_as_they_were_given():
    given = [np.array([1.0, 0.0, 0.0]), np.array([-1.0, 1.0, 0.0]), np.array([-1.0, 0.0, 1.0])]
    before = [g.copy() for g in given]
    for result in project_conflicts(given, seed=3):
        assert np.isfinite(result).all()
    np.testing.assert_array_equal(given, before)
    assert project_conflicts([]) == []


def beside(random, shift: int, count: int = 600):
    """(traces, problems): each trace walks through the tokens of its problem at random, and after every one writes the
    token that stands `shift` places from it in the problem."""
    problems = [random.permutation(np.arange(2, 10)) for _ in range(count)]
    traces = []
    for problem in problems:
        places = random.integers(1, 7, 6)
        traces.append(np.stack([problem[places], problem[places + shift]], axis=1).ravel())
    return traces, problems


def test_a_clash_with_the_problem_shows_where_contexts_are_joined_with_it():
    random = np.random.default_rng(0)
    made = {"right": beside(random, 1), "same": beside(random, 1), "left": beside(random, -1)}
    traces, problems = ({name: pair[k] for name, pair in made.items()} for k in range(2))
    apart, joined = (continuation_conflict(traces, width=1, problems=p) for p in (None, problems))
    assert apart.between("right", "left") < 0.02
    assert joined.between("right", "left") > 0.2
    assert abs(joined.between("right", "same")) < 0.05
    worst = worst_contexts(count_continuations(traces, width=1, problems=problems), "right", "left", limit=3)
    for clash in worst:
        before, after, _ = clash.context
        assert {side[0][0] for side in clash.after} == {before, after}


def test_neighbours_in_a_problem_by_hand():
    problems = [np.array([5, 3, 5, 7]), np.array([], int), np.array([4])]
    found = _around(problems, np.array([0, 0, 0, 1, 2]), np.array([5, 7, 9, 5, 4]))
    assert found.tolist() == [[-1, 3], [5, -1], [-1, -1], [-1, -1], [-1, -1]]
