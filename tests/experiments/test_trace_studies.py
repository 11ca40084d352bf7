"""The studies of what is in a trace: their own kinds of traces, and verdicts that follow from the rows."""

import math
import random

import pytest

from experiments import corrupted_traces, corruptions, form_or_content, length_and_difficulty, teacher_context
from mixdistill.evaluation.answers import Answer
from mixdistill.studies.results import Results
from mixdistill.studies.study import Row
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.world import Problem
from mixdistill.traces.worlds.write import traces

PLAIN = list(traces(WALK, {"F": 20}, seed=5))
SEEDS, PROBLEMS = 4, 100


def rows(accuracy):
    """Of each arm, with its share of right answers in every split."""
    return [
        Row(arm, seed, {split: right(share) for split in ("test", "long", "clutter")})
        for arm, share in accuracy.items()
        for seed in range(SEEDS)
    ]


def right(share):
    return [problem < share * PROBLEMS for problem in range(PROBLEMS)]


def outcome(study, accuracy):
    return study().verdict(Results(rows(accuracy))).outcome


def test_a_concise_teacher_leaves_out_the_first_and_the_last_state():
    for trace in PLAIN:
        short = teacher_context.concise(trace, trace, random.Random(0))
        lost = [len(a.text.split()) - len(b.text.split()) for a, b in zip(trace.steps, short.steps, strict=True)]
        assert lost == [1, *[0] * (len(trace.steps) - 3), 1, 0]
        assert WALK.verify(WALK.problem_of(trace.prompt), short.text)


def test_a_teacher_that_is_told_the_answer_writes_the_same():
    for trace in PLAIN:
        told = teacher_context.told(corruptions.as_it_is)(trace, trace, random.Random(0))
        assert told.text == trace.text
        assert told.prompt.split() == [*trace.prompt.split(), "=", trace.answer]


def test_an_odd_form_is_judged_as_what_it_says():
    for trace in PLAIN:
        odd = form_or_content.label_first(trace, trace, random.Random(0))
        assert odd.text != trace.text
        assert form_or_content._restored(odd.text.split()) == trace.text
        (found,) = form_or_content._as_written_by_f([form_or_content.WALK.problem_of(trace.prompt)], [odd.text])
        assert (found.correct, found.valid) == (True, True)


@pytest.mark.parametrize("text", ["", "=", "A N 3", "A N 3 d M = 4", "= 4"])
def test_words_in_no_form_stay_in_none(text):
    (found,) = form_or_content._as_written_by_f([form_or_content.WALK.problem_of(PLAIN[0].prompt)], [text])
    assert not found.valid


def answers(*lengths_and_edges):
    return [
        Answer(Problem("", "", "", edges, ""), "", "", True, True, "", True, math.nan, tokens)
        for tokens, edges in lengths_and_edges
    ]


def test_length_that_follows_difficulty():
    assert length_and_difficulty.correlation(answers((5, 1), (7, 2), (9, 3))) == pytest.approx(1.0)
    assert length_and_difficulty.correlation(answers((9, 1), (7, 2), (5, 3))) == pytest.approx(-1.0)
    assert length_and_difficulty.correlation(answers((7, 1), (7, 2), (7, 3))) == 0.0


def test_words_of_caution_are_counted_as_words():
    made = [one._replace(text=text) for one, text in zip(answers((1, 1), (1, 1)), ("maybe A check", "A"), strict=True)]
    assert teacher_context.markers(made) == 1.0


ALL_RIGHT = dict.fromkeys([*corrupted_traces.PLAIN, *corrupted_traces.HEDGED], 0.95)
STRUCTURE = {"steps shuffled": 0.2, "a third of the steps deleted": 0.2}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (STRUCTURE, "holds"),
        ({**STRUCTURE, "swapped": 0.1}, "holds in part"),
        ({"swapped": 0.1, "half of the answers wrong": 0.1}, "overturned"),
        (dict.fromkeys(ALL_RIGHT, 0.1), "not testable at this scale"),
    ],
)
def test_verdict_of_corrupted_traces(change, expected):
    assert outcome(corrupted_traces.study, {**ALL_RIGHT, **change}) == expected


FORMS = dict.fromkeys([*form_or_content.KINDS, form_or_content.HALF, *form_or_content.FIRST], 0.9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "holds"),
        ({"form without content": 0.1}, "overturned"),
        ({"form without content": 0.1, "content in an odd form": 0.3}, "holds in part"),
        ({"form without content": 0.1, form_or_content.HALF: 0.4}, "holds in part"),
        (dict.fromkeys(FORMS, 0.1), "not testable at this scale"),
    ],
)
def test_verdict_of_form_or_content(change, expected):
    assert outcome(form_or_content.study, {**FORMS, **change}) == expected


def told_and(**split):
    """The cautious teacher's students are right in 80 %; the concise one's as given, the terse one's hardly ever."""
    table = {"plain": {}, "cautious": {}, "concise": split, "terse": dict.fromkeys(("test", "long", "clutter"), 0.1)}
    found = [
        Row(arm, seed, {name: right(own.get(name, 0.8)) for name in ("test", "long", "clutter")})
        for arm, own in table.items()
        for seed in range(SEEDS)
    ]
    told = [Row("plain, told", seed, {}, {"richness": 1.0}) for seed in range(SEEDS)]
    return teacher_context.study().verdict(Results([*found, *told]))


def test_verdict_of_teacher_context():
    assert told_and(long=0.3).outcome == "holds"
    assert told_and().outcome == "overturned"
    assert told_and(test=0.2).outcome == "not testable at this scale"


def tracked(test, long, clutter):
    tracks = {"test tracks": test, "long falls": test - long, "clutter falls": test - clutter}
    found = rows(dict.fromkeys(length_and_difficulty.TEACHERS, 0.9))
    return [row._replace(numbers={name: value + row.seed / 1000 for name, value in tracks.items()}) for row in found]


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ((0.95, 0.3, 0.3), "holds"),
        ((0.95, 0.3, 0.9), "holds in part"),
        ((0.95, 0.9, 0.9), "overturned"),
        ((0.5, 0.1, 0.1), "not testable at this scale"),
    ],
)
def test_verdict_of_length_and_difficulty(of, expected):
    assert length_and_difficulty.study().verdict(Results(tracked(*of))).outcome == expected
