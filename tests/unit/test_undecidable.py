"""Undecidable disagreement by hand, and its classifier against a dense one written out."""

import itertools
import math

import numpy as np
import pytest

from mixdistill.diagnostics import undecidable
from mixdistill.diagnostics.content import flat
from mixdistill.diagnostics.undecidable import name_candidate, undecidable_disagreement

END, FILLER = 0, 1
IS_CONTENT = np.array([False, False] + [True] * 60)


def traces(*tokens):
    return flat([np.array([*t, END], np.int32) for t in tokens], IS_CONTENT)


def contradicted(scored, where):
    """Log-probabilities of a student that is sure of something else at these places, and of the token elsewhere."""
    label = np.where(np.isin(scored.place, where), math.log(0.05), math.log(0.9))
    return label, np.full(len(scored.token), math.log(0.9))


def many(random, alphabet, length=8, count=150):
    return traces(*random.choice(alphabet, (count, length)))


def test_another_notation_is_decodable_and_the_same_surface_is_not():
    random = np.random.default_rng(0)
    anchor, same = many(random, range(2, 12)), many(random, range(2, 12))
    letters, more_letters = many(random, range(20, 30)), many(random, range(20, 30), count=40)
    label, top = contradicted(more_letters, np.arange(99))
    notation = undecidable_disagreement(anchor, letters, more_letters, label, top)
    assert notation.disagreement == 1.0
    assert notation.decodability > 0.9
    assert notation.undecidable_late < 0.1
    assert (notation.verdict, notation.conflicts()) == ("other notation, safe", False)
    fresh = many(random, range(2, 12), count=40)
    clash = undecidable_disagreement(anchor, same, fresh, *contradicted(fresh, np.arange(99)))
    assert clash.disagreement == 1.0
    assert clash.undecidable_late > 0.6
    assert (clash.verdict, clash.conflicts()) == ("conflict", True)


def test_it_is_disagreement_times_what_cannot_be_decoded():
    random = np.random.default_rng(1)
    anchor, candidate, scored = many(random, range(2, 9)), many(random, range(4, 12)), many(random, range(4, 12))
    label, top = contradicted(scored, [4, 6])
    found = undecidable_disagreement(anchor, candidate, scored, label, top)
    assert found.disagreement == pytest.approx(2 / 5)  # of places 3 to 7; the first three and the end do not count
    assert found.undecidable == pytest.approx(found.disagreement * (1 - found.decodability))
    p = name_candidate(anchor, candidate, scored).reshape(-1, 5)
    expected = (1 - np.clip(2 * p - 1, 0, 1)) * np.isin(np.arange(3, 8), [4, 6])
    assert found.undecidable == pytest.approx(expected.mean())
    assert found.undecidable_late == pytest.approx(expected.mean())  # 9 tokens: the first third is places 0 to 2


def test_late_is_after_the_first_third():
    random = np.random.default_rng(2)
    long = many(random, range(2, 12), length=17, count=30)
    found = undecidable_disagreement(long, long, long, *contradicted(long, [3, 4, 5]))
    assert found.num_tokens == 30 * 14
    assert found.num_late == 30 * 11  # from place 6 = 18 / 3 on
    assert found.undecidable > 0
    assert found.undecidable_late == 0
    assert found.verdict != "conflict"


@pytest.mark.parametrize(("label", "top", "counts"), [(0.05, 0.9, 1), (0.2, 0.75, 0), (0.05, 0.6, 0), (0.9, 0.9, 0)])
def test_only_confident_disagreement_counts(label, top, counts):
    same = traces(*[[5, 6, 7, 8]] * 20)
    shape = len(same.token)
    found = undecidable_disagreement(same, same, same, np.full(shape, math.log(label)), np.full(shape, math.log(top)))
    assert found.disagreement == counts


def test_no_data_is_said():
    terse, some = traces([5], [6]), traces(*[[5, 6, 7, 8]] * 4)
    found = undecidable_disagreement(some, terse, terse, np.zeros(4), np.zeros(4))
    assert (found.verdict, found.conflicts(), found.num_tokens) == ("no data", None, 0)
    assert math.isnan(found.undecidable_late)
    nothing_to_learn = undecidable_disagreement(terse, some, some, *contradicted(some, [3]))
    assert nothing_to_learn.undecidable == pytest.approx(1.0)  # chance: nothing can be decoded


def test_fillers_are_read_but_not_counted():
    hedged = traces(*[[5, FILLER, 6, FILLER, 7, FILLER, 8]] * 30)
    plain = traces(*[[5, 6, 7, 8]] * 30)
    found = undecidable_disagreement(plain, hedged, hedged, *contradicted(hedged, np.arange(9)))
    assert found.num_tokens == 30 * 2  # 7 and 8
    assert found.undecidable < 0.05


def test_features_are_the_tokens_and_neighbours_of_the_window():
    features = undecidable._features(traces([2, 3, 4, 5, 6, 7, 8, 9]))
    rows = [set(features.value[features.number == n].tolist()) for n in range(5)]
    assert len(features.number) == 5 * (6 + 5)

    def pair(a, b):
        return (a << 31) + b + (1 << 62)

    window = [0, 0, 0, 3, 4, 5]  # before the fourth token: nothing thrice, then 2, 3, 4, each plus one
    assert rows[0] == {*window, *itertools.starmap(pair, itertools.pairwise(window))}
    assert rows[4] == {*range(4, 10), *itertools.starmap(pair, itertools.pairwise(range(4, 10)))}
