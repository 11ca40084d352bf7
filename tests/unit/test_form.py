"""Form measures: values by hand, properties, and a slow second implementation of each count."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics import behaviour, divergence, form, length, spelling, tokenization
from mixdistill.traces.tokenizer import train_bpe, word_level
from mixdistill.traces.trace import Step, Trace

some_text = st.text(st.sampled_from("aeiWwhmt cklysep.,\n"), max_size=60) | st.sampled_from(
    ["Wait, unlikely! Checked. check", "MAYBE it seems", "actually actually", ""]
)


def test_markers_by_hand():
    text = "Wait. It is unlikely; I checked. Check again, hmm, hmm."
    substrings = form.count_markers(text)
    assert (substrings["wait"], substrings["likely"], substrings["check"], substrings["hmm"]) == (1, 1, 2, 2)
    words = form.count_markers(text, boundaries=True)
    assert (words["wait"], words["likely"], words["check"], words["hmm"]) == (1, 0, 1, 2)
    assert list(words) == list(form.MARKERS)
    assert len(words) == 10


@given(some_text)
def test_markers_agree_with_a_scan_of_every_place(text):
    low = text.lower()
    for boundaries in (False, True):
        for marker, count in form.count_markers(text, boundaries).items():
            places = [i for i in range(len(low)) if low.startswith(marker, i)]
            if boundaries:
                places = [
                    i
                    for i in places
                    if not re.match(r"\w", low[i - 1 : i]) and not re.match(r"\w", low[i + len(marker) :][:1])
                ]
            assert count == len(places)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (r"So \boxed{5}.", "boxed"),
        ("so\n#### 5", "####"),
        ("A: 5", "label"),
        ("**Final Answer:** 5", "label"),
        ("Thus the answer is 5.", "phrase"),
        ('{"reasoning": "r", "answer": "5"}', "json"),
        ("<answer>5</answer>", "tag"),
        (r"The answer is 5. \boxed{5}", "boxed"),
        ("Then 40 kittens.", "none"),
        ("", "none"),
    ],
)
def test_answer_format(text, name):
    assert form.answer_format(text) == name


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("<think>a</think>b", "closed"),
        ("<think>a", "unclosed"),
        ("a</think>b", "unopened"),
        ("a", "none"),
        ("<thinking>a</thinking>", "closed"),
    ],
)
def test_think_tags(text, state):
    assert form.think_tags(text) == state


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        ("<think>so.", True),
        ("the ratio is 5, so", True),
        ("the ratio is 5.", False),
        ("A: 5 apples", False),
        ("gives $5", False),
        ("", False),
    ],
)
def test_truncation(text, truncated):
    assert form.is_truncated(text) is truncated


def test_loops_by_hand():
    assert form.find_loop([1, 2, 3] + [7, 8] * 30) == form.Loop(2, 60)
    assert form.find_loop([5] * 100) == form.Loop(1, 100)
    assert form.find_loop([1, 2] + [7, 8] * 20) is None  # 40 tokens
    assert form.find_loop(list(range(30)) * 2) is None  # twice
    assert form.find_loop(list(range(30)) * 3) == form.Loop(30, 90)
    assert form.find_loop([1, 2, 3] + [7, 8] * 30 + [9, 9]) == form.Loop(2, 60)
    assert form.find_loop([1, 2, 3] + [7, 8] * 30 + [9, 4, 5]) is None
    assert form.find_loop(range(500)) is None
    assert form.find_loop([]) is None


@given(
    st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 40)
)
def test_loop_agrees_with_the_definition(head, block, repeats):
    tokens = head + block * repeats
    candidates = []
    for ragged in range(form.LOOP_RAGGED + 1):
        kept = tokens[: len(tokens) - ragged]
        for period in range(1, len(kept)):
            run = period
            while run < len(kept) and kept[-1 - run] == kept[-1 - run + period]:
                run += 1
            if run >= max(form.LOOP_TOKENS, form.LOOP_REPEATS * period):
                candidates.append(form.Loop(period, run))
    assert form.find_loop(tokens) == (candidates[0] if candidates else None)


def test_form_of_a_trace():
    trace = Trace("p", "q", (Step("Wait, so. "), Step("The answer is 5.")), "5", "t")
    found = form.form_of(trace, [1, 2, 3])
    assert (found.characters, found.words, found.steps) == (26, 6, 2)
    assert (found.answer_format, found.think_tags, found.truncated, found.loop) == ("phrase", "none", False, None)
    assert form.form_of(Trace("p", "q", (), "", "t"), []).words == 0


def test_steps_are_labelled_by_their_first_cue():
    assert [
        behaviour.BEHAVIOURS[behaviour.label_by_cues(s)] for s in ("So 2+2=4.", "Wait, maybe.", "Perhaps check it.")
    ] == [
        "deduction",
        "reflection",
        "exploration",
    ]
    assert behaviour.label_by_cues("") == 0


def test_transitions_by_hand():
    counts = behaviour.count_transitions([[0, 0, 1, 0], [0, 1], [2], []])
    assert counts.tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0]]
    matrix = behaviour.transition_matrix(counts)
    np.testing.assert_allclose(matrix[:2], [[1 / 3, 2 / 3, 0], [1, 0, 0]])
    assert np.isnan(matrix[2]).all()
    # Entries (1/3, 2/3, 0, 1, 0, 0) of the rows both have, against themselves.
    assert behaviour.transition_correlation(counts, counts) == pytest.approx(1)
    assert math.isnan(behaviour.transition_correlation(counts, np.zeros((3, 3), int)))
    assert math.isnan(behaviour.transition_distance(counts, np.zeros((3, 3), int)))


@given(st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=6))
def test_transitions_agree_with_pairs(sequences):
    pairs = [pair for sequence in sequences for pair in itertools.pairwise(sequence)]
    counts = behaviour.count_transitions(sequences)
    assert counts.tolist() == [[pairs.count((a, b)) for b in range(3)] for a in range(3)]


def test_jensen_shannon_by_hand():
    assert divergence.jensen_shannon([1, 0], [0, 3]) == 1
    assert divergence.jensen_shannon([1, 1], [2, 2]) == 0
    # p = (1, 0), q = (.5, .5): middle (.75, .25); (log2(4/3) + .5 log2(2/3) + .5 log2 2) / 2 = .3113
    assert divergence.jensen_shannon([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.31127812))
    assert math.isnan(divergence.jensen_shannon([0, 0], [1, 1]))


counts_of_three = st.lists(st.integers(0, 50), min_size=3, max_size=3)


@given(counts_of_three, counts_of_three)
def test_jensen_shannon_is_a_distance_and_agrees_with_entropies(a, b):
    found = divergence.jensen_shannon(a, b)
    if not sum(a) or not sum(b):
        assert math.isnan(found)
        return

    def entropy(p):
        return -sum(x * math.log2(x) for x in p if x)

    p, q = ([x / sum(v) for x in v] for v in (a, b))
    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    assert found**2 == pytest.approx(entropy(middle) - (entropy(p) + entropy(q)) / 2, abs=1e-9)
    assert found == pytest.approx(divergence.jensen_shannon(b, a))
    assert 0 <= found <= 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_spearman_agrees_with_ranks(pairs):
    x, y = np.array(pairs, float).reshape(-1, 2).T
    found = divergence.spearman(x, y)

    def ranks(v):
        return np.array([(v < a).sum() + ((v == a).sum() + 1) / 2 for a in v])

    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])


def test_spearman_leaves_pairs_with_nan_out():
    assert divergence.spearman([1, 2, np.nan, 3], [1, 2, 9, 3]) == pytest.approx(1)
    assert math.isnan(divergence.spearman([np.nan, 1], [1, 2]))


def test_difficulty_by_hand():
    problem, teacher = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 1, 0])
    correct = np.array([1, 0, 1, 0, np.nan, 1.0])
    # Problem 0: teacher 0 fails half of the time, teacher 1 never: 1/4. Problems 1 and 2 are graded for one teacher.
    np.testing.assert_equal(length.difficulty(problem, teacher, correct), [0.25, 0.25, 0.25, np.nan, np.nan, np.nan])
    assert length.difficulty(problem[:0], teacher[:0], correct[:0]).shape == (0,)


def test_length_follows_difficulty():
    assert length.length_against_difficulty([10, 20, 30], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert length.length_against_difficulty([30, 20, 10], [0.1, 0.2, 0.3]) == pytest.approx(-1)
    assert math.isnan(length.length_against_difficulty([10, 10], [0.1, 0.2]))


@settings(max_examples=50)
@given(st.text(max_size=30), st.integers(1, 4))
def test_character_ngrams_count_every_place(text, n):
    data = text.encode("utf-8", "replace")
    grams = {data[i : i + n] for i in range(len(data) - n + 1)}
    counts = spelling.character_ngrams(text, n)
    assert counts.sum() == max(len(data) - n + 1, 0)
    assert (counts > 0).sum() <= len(grams)
    for gram in grams:  # bytes of a gram alone fall in its bin
        alone = np.flatnonzero(spelling.character_ngrams(gram.decode("latin1"), n)) if gram.isascii() else []
        assert all(counts[bin] for bin in alone)


def test_spelling_distance_tells_notations_apart():
    plain, markup = "two plus two is four. " * 20, r"\( 2 + 2 = 4 \) " * 20
    a, b, c = (spelling.character_ngrams(t) for t in (plain, markup, plain[22:]))
    assert divergence.jensen_shannon(a, b) > 0.9
    assert divergence.jensen_shannon(a, c) < 0.1


def test_tokenizer_fit():
    fit = tokenization.tokenizer_fit(word_level(["a"]))
    assert (fit.eos, fit.unknown) == ("<eos>", "<unk>")
    bytes_only = tokenization.tokenizer_fit(train_bpe(["abc"], 260))
    assert bytes_only.unknown is None
    assert bytes_only.split_think_tags == ("<think>", "</think>")


def test_control_tokens_written_out():
    assert tokenization.control_tokens_in("a <|im_end|> b </s> <|im_end|> [/INST]") == ["<|im_end|>", "</s>", "[/INST]"]
    assert tokenization.control_tokens_in("if a<b and |x|>2 then </think>") == []
