"""Groups of compatible teachers, by hand and against all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics.groups import Group, compatible_groups, coverage


def matrix(names, **conflicts):
    score = np.zeros((len(names), len(names)))
    for pair, value in conflicts.items():
        i, j = map(names.index, pair)
        score[i, j] = score[j, i] = value
    return score


def test_coverage_decides_before_size_and_size_before_conflict():
    names = ("A", "B", "C", "D")
    score = matrix(names, AB=0.3, AC=0.3, AD=0.01, BD=0.3, CD=0.3, BC=0.02)
    wanted = {3: 1, 4: 1, 5: 1}
    small_but_wide = dict(A={3, 4}, D={5}, B={4}, C={5})
    assert compatible_groups(names, score, small_but_wide, wanted)[0].teachers == ("A", "D")
    all_alike = {name: {3, 4, 5} for name in names}
    assert compatible_groups(names, score, all_alike, wanted)[0].teachers == ("A", "D")  # less conflict
    larger = matrix(names, AB=0.3, AC=0.3, AD=0.3)
    assert compatible_groups(names, larger, all_alike, wanted)[0] == Group(("B", "C", "D"), 1.0, 0.0)


def test_a_pair_that_could_not_be_measured_is_kept_apart():
    score = np.array([[0, np.nan], [np.nan, 0]])
    groups = compatible_groups(("a", "b"), score, {"a": {1}, "b": {1, 2}}, {1: 3, 2: 1})
    assert [group.teachers for group in groups] == [("b",), ("a",)]
    assert groups[1].coverage == pytest.approx(0.75)


def test_a_handful_of_odd_problems_does_not_cost_a_teacher():
    names = ("a", "b", "c")
    kinds = {"a": {1}, "b": {1}, "c": {1, 2}}
    best = compatible_groups(names, matrix(names, ac=0.3, bc=0.3), kinds, {1: 9999, 2: 1})[0]
    assert best.teachers == ("a", "b")


def test_without_target_problems_everything_is_covered():
    assert coverage((), {}) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**15 - 1))
def test_groups_are_the_maximal_sets_without_conflict(size, bits):
    names = tuple("abcdef"[:size])
    score = np.zeros((size, size))
    for n, (i, j) in enumerate(itertools.combinations(range(size), 2)):
        score[i, j] = score[j, i] = bits >> n & 1
    free = [
        set(s)
        for r in range(1, size + 1)
        for s in itertools.combinations(range(size), r)
        if not any(score[i, j] for i, j in itertools.combinations(s, 2))
    ]
    maximal = {tuple(names[i] for i in sorted(s)) for s in free if not any(s < other for other in free)}
    found = compatible_groups(names, score, {name: {0} for name in names}, {0: 1})
    assert {group.teachers for group in found} == maximal
