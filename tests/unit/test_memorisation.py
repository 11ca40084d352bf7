"""The n-gram index against counting by eye, and STIM's scores against their definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics import memorisation as stim
from mixdistill.diagnostics.ngram_index import DEPTH, NgramIndex, index_shards
from mixdistill.errors import UserError
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace

TRACES = [[1, 2, 3, 1, 2, 4], [1, 2, 3], [5, 1, 2, 3, 3]]
TEACHER = [0, 1, 1]


def index() -> NgramIndex:
    return NgramIndex.build([np.array(t, np.int32) for t in TRACES], TEACHER, ("ann", "bob"))


def test_counts_by_hand():
    made = index()
    assert [made.count(gram) for gram in ([1, 2], [1, 2, 3], [3, 1], [4], [4, 1], [9])] == [4, 3, 1, 1, 0, 0]
    assert made.count_by_teacher([1, 2]).tolist() == [2, 2]
    assert made.count_by_teacher([9]).tolist() == [0, 0]
    assert made.totals.tolist() == [6, 8]
    assert made.longest_suffix([7, 5, 1, 2]) == 3
    assert made.longest_suffix([9]) == 0
    assert made.traces_with(3).tolist() == [True, True, True]
    assert made.traces_with(4).tolist() == [True, False, False]


def _holds(trace, gram) -> bool:
    return any(trace[i : i + len(gram)] == gram for i in range(len(trace)))


tokens = st.lists(st.integers(0, 3), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=5), tokens.filter(bool))
def test_counts_agree_with_a_scan(traces, gram):
    teacher = [n % 2 for n in range(len(traces))]
    made = NgramIndex.build([np.array(t, np.int32) for t in traces], teacher, ("a", "b"))
    found = [sum(t[i : i + len(gram)] == gram for i in range(len(t) - len(gram) + 1)) for t in traces]
    assert made.count(gram) == sum(found)
    assert made.count_by_teacher(gram).tolist() == [sum(found[0::2]), sum(found[1::2])]
    endings = [n for n in range(1, len(gram) + 1) if any(_holds(trace, gram[-n:]) for trace in traces)]
    assert made.longest_suffix(gram) == max(endings, default=0)


def test_deep_ngrams_are_sorted_by_their_first_tokens():
    random = np.random.default_rng(0)
    trace = random.integers(0, 2, 3000).astype(np.int32)
    made = NgramIndex.build([trace], [0], ("a",))
    place = 1700
    gram = trace[place : place + DEPTH].tolist()
    assert made.count(gram) == 1
    assert made.longest_suffix(trace[: place + 40].tolist()) == DEPTH
    with pytest.raises(ValueError, match="1 to 32"):
        made.count([0] * (DEPTH + 1))


def test_saved_index_is_the_same(tmp_path):
    index().save(tmp_path / "index")
    loaded = NgramIndex.load(tmp_path / "index")
    assert loaded.count_by_teacher([1, 2]).tolist() == [2, 2]
    assert isinstance(loaded.tokens, np.memmap)
    with pytest.raises(UserError, match="exists already"):
        index().save(tmp_path / "index")
    with pytest.raises(UserError, match="no n-gram index"):
        NgramIndex.load(tmp_path / "none")


def test_index_of_shards_and_its_bound(tmp_path):
    words = word_level(["q", "a", "b"])
    traces = [Trace(f"p{i}", "q", (Step("a b"),), "", "xy"[i % 2]) for i in range(10)]
    shards = prepare_traces(traces, tmp_path / "s", tokenizer=words)
    a, b = words.encode("a b")
    assert index_shards(shards).count_by_teacher([a, b]).tolist() == [5, 5]
    sampled = index_shards(shards, max_tokens=12)  # a trace has four tokens: prompt, a, b, end
    assert sampled.count([a, b]) == 3


def test_frequency_correlation():
    assert stim.frequency_correlation([0.5, 0.3, 0.2], [90, 10, 1]) == pytest.approx(1)
    assert stim.frequency_correlation([0.5, 0.3, 0.2], [1, 10, 90]) == pytest.approx(-1)
    # Ranks (3, 2, 1) and (2.5, 2.5, 1): correlation sqrt(3) / 2.
    assert stim.frequency_correlation([0.5, 0.3, 0.2], [7, 7, 0]) == pytest.approx(math.sqrt(3) / 2)
    for degenerate in (([], []), ([0.5], [1]), ([0.5, 0.5], [1, 2]), ([0.5, 0.2], [3, 3]), ([0.5, np.nan], [1, 2])):
        assert math.isnan(stim.frequency_correlation(*degenerate))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100)), min_size=2, max_size=20))
def test_frequency_correlation_sees_only_order(pairs):
    p, f = (np.array(v) for v in zip(*pairs, strict=True))
    found = stim.frequency_correlation(p, f)
    other = stim.frequency_correlation(np.argsort(np.argsort(p, kind="stable")) if len(set(p)) == len(p) else p, f**3)
    assert found == pytest.approx(other, nan_ok=True)
    assert math.isnan(found) or -1 <= found <= 1


def test_local_score_by_hand():
    made = index()
    # After "1 2" the traces have 3 three times and 4 once; 5 never.
    agreeing = stim.Alternatives([3, 4, 5], [0.6, 0.3, 0.1])
    assert stim.local_score(made, [9, 1, 2], 3, agreeing) == pytest.approx(1)
    assert stim.local_score(made, [9, 1, 2], 4, stim.Alternatives([3, 4, 5], [0.1, 0.3, 0.6])) == pytest.approx(-1)
    assert math.isnan(stim.local_score(made, [1, 2], 9, stim.Alternatives([9, 3], [0.6, 0.4])))


def test_cooccurrence_by_hand():
    made = index()
    # Traces with 5: the third. It holds 3 and not 4.
    assert stim.cooccurrence_score(made, [5], stim.Alternatives([3, 4], [0.9, 0.1])) == pytest.approx(1)
    assert math.isnan(stim.cooccurrence_score(made, [], stim.Alternatives([3, 4], [0.9, 0.1])))


def test_rarest_tokens_are_salient():
    assert stim.rarest(index(), [1, 4, 9, 5, 3], count=2) == [4, 5]


def test_shortest_context():
    asked = []

    def emits(context):
        asked.append(list(context))
        return 7 if len(context) >= 2 else 0

    assert stim.shortest_context(emits, [1, 2, 3, 4], 7) == [3, 4]
    assert asked == [[4], [3, 4]]
    assert stim.shortest_context(lambda _: 0, [1, 2], 7) == [1, 2]


def test_attribution_is_a_rate_and_names_nobody_without_a_match():
    found = stim.attribute(index(), [8, 3, 1, 2, 4])
    assert (found.teacher, found.suffix) == ("ann", 4)
    # "1 2" comes twice with either, but bob wrote more.
    assert stim.attribute(index(), [1, 2]).teacher == "ann"
    assert stim.attribute(index(), [1, 2]).rate["bob"] == pytest.approx(2e6 / 8)
    assert stim.attribute(index(), [9]).teacher is None


def test_memorisation_of_a_token():
    alternatives = stim.Alternatives([3, 4, 5], [0.6, 0.3, 0.1])
    found = stim.memorisation(index(), [5], [1, 2, 3], 2, alternatives)
    # "5 1 2" is followed by 3 once, by 4 and 5 never.
    assert found.local == pytest.approx(math.sqrt(3) / 2)
    assert found.attribution.teacher == "bob"
    assert found.source in ("local", "mid", "long")
    with pytest.raises(ValueError, match="not among"):
        stim.memorisation(index(), [5], [1, 2, 3], 1, alternatives)


def test_source_without_data():
    nothing = stim.Memorisation(math.nan, math.nan, math.nan, stim.Attribution(None, 0, {}))
    assert nothing.source is None
    assert nothing._replace(mid=0.2, long=0.3).source == "long"
