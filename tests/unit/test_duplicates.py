"""Near duplicates and overlap with evaluation problems, against all pairs and all n-grams."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics import duplicates


def shingles(tokens) -> set[tuple]:
    size = min(duplicates.SHINGLE, len(tokens))
    return {tuple(tokens[i : i + size]) for i in range(max(len(tokens) - size + 1, 1))}


def similarity(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def changed(tokens: np.ndarray, places) -> np.ndarray:
    copy = tokens.copy()
    copy[list(places)] = 999
    return copy


def test_near_duplicates_agree_with_jaccard_over_all_pairs():
    random = np.random.default_rng(0)
    traces = []
    for _ in range(6):
        base = random.integers(0, 50, 200)
        # 1 change leaves 191 of 201 shingles: similarity .95; 40 changes leave almost none.
        traces += [base, base.copy(), changed(base, [100]), changed(base, range(0, 200, 5))]
    pairs = duplicates.near_duplicates(np.stack([duplicates.signature(t) for t in traces]))
    sets = [shingles(t.tolist()) for t in traces]
    expected = {(i, j) for i, j in itertools.combinations(range(len(traces)), 2) if similarity(sets[i], sets[j]) > 0.8}
    # A crowd is linked to its first member, so 1-2 may be missing where 0-1 and 0-2 stand.
    assert set(map(tuple, pairs.tolist())) <= expected
    assert {pair for pair in expected if pair[0] % 4 == 0} <= set(map(tuple, pairs.tolist()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 5))
def test_equal_traces_are_always_found(tokens, others):
    random = np.random.default_rng(len(tokens))
    rows = [
        np.array(tokens, np.int32),
        *(random.integers(10, 90, 40) for _ in range(others)),
        np.array(tokens, np.int32),
    ]
    pairs = duplicates.near_duplicates(np.stack([duplicates.signature(row) for row in rows]))
    assert [0, len(rows) - 1] in pairs.tolist()


def test_agreement_estimates_similarity():
    random = np.random.default_rng(1)
    base = random.integers(0, 1000, 400)
    for count in (4, 12, 30):
        other = changed(base, random.choice(400, count, replace=False))
        agreement = (duplicates.signature(base) == duplicates.signature(other)).mean()
        assert (
            abs(agreement - similarity(shingles(base.tolist()), shingles(other.tolist()))) < 0.2
        )  # three standard deviations at 64 hashes


def test_no_traces_and_one_trace():
    assert duplicates.near_duplicates(np.zeros((0, duplicates.HASHES), np.uint32)).shape == (0, 2)
    assert duplicates.near_duplicates(duplicates.signature(np.array([], int))[None]).shape == (0, 2)


def test_table_counts_traces_by_hand():
    pairs = np.array([[0, 1], [0, 2], [3, 4]])
    teacher = np.array([0, 1, 1, 1, 1])
    # Trace 0 of teacher 0 has duplicates by 1 (one trace); 1 and 2 of teacher 1 by 0; 3 and 4 within teacher 1.
    assert duplicates.duplicate_table(pairs, teacher, 2).tolist() == [[0, 1], [2, 2]]


def test_overlap_by_hand():
    evaluation = [
        "Ann has five apples and gives two to Bob.",
        "What is 2 + 2?",
        "???",
        "Cid sells nine red and ten blue cars",
    ]
    training = ["ann has FIVE apples, and gives two to Bob! How many?", "tell me: what is 2 2 then"]
    seen = duplicates.seen_share(evaluation, training)
    np.testing.assert_equal(seen, [1.0, 1.0, np.nan, 0.0])


def test_overlap_is_a_share():
    training = ["a b c d e f g h i"]
    # Eleven words have four 8-grams; "a..h" and "b..i" are in training.
    assert duplicates.seen_share(["a b c d e f g h i j k"], training)[0] == 0.5


words = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12).map(" ".join)


@settings(deadline=None)
@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_overlap_agrees_with_substrings(evaluation, training):
    padded = [f" {text} " for text in training]
    for text, share in zip(evaluation, duplicates.seen_share(evaluation, training), strict=True):
        found, size = text.split(), min(8, len(text.split()))
        grams = {f" {' '.join(found[i : i + size])} " for i in range(len(found) - size + 1)}
        assert share == sum(any(gram in t for t in padded) for gram in grams) / len(grams)
