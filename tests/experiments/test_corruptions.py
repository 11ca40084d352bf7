"""Corrupted traces are wrong in the one respect that their name says, and right in all others."""

import random

import pytest

from experiments import corruptions
from mixdistill.traces.trace import Verdict
from mixdistill.traces.worlds.maze import maze
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.write import encode_words, traces

MAZE = maze("wilson", (5,), (7,))


@pytest.fixture(params=["walk", "maze"])
def world(request):
    return {"walk": WALK, "maze": MAZE}[request.param]


def two(world, teacher=None):
    return list(traces(world, {teacher or next(iter(world.teachers)): 2}, seed=3))


def made(kind, world, seed=0, teacher=None):
    one, other = two(world, teacher)
    return one, other, kind(one, other, random.Random(seed))


def judged(world, trace):
    return world.judge(world.problem_of(trace.prompt), trace.text)


def words(trace):
    return [step.text for step in trace.steps[:-1]]


def test_swapped(world):
    one, other, wrong = made(corruptions.swapped, world)
    assert words(wrong) == words(other)
    assert wrong.steps[-1] == one.steps[-1]
    assert judged(world, wrong)[:2] == (True, False)


def test_with_another_answer(world):
    one, other, wrong = made(corruptions.with_another_answer, world)
    assert words(wrong) == words(one)
    assert wrong.answer == other.answer != one.answer
    assert wrong.verdict is Verdict.WRONG
    assert judged(world, wrong)[:2] == (False, True)


def test_another_answer_that_happens_to_be_right_is_graded_as_right():
    one, _ = two(WALK)
    assert corruptions.with_another_answer(one, one, random.Random()).verdict is Verdict.CORRECT


def test_without_reasoning(world):
    one, _, wrong = made(corruptions.without_reasoning, world)
    assert wrong.text == one.steps[-1].text
    assert judged(world, wrong).correct


def test_shuffled(world):
    one, _, wrong = made(corruptions.shuffled, world)
    assert sorted(words(wrong)) == sorted(words(one))
    assert words(wrong) != words(one)
    assert judged(world, wrong)[:2] == (True, False)


def test_scrambled(world):
    one, _, wrong = made(corruptions.scrambled, world)
    assert sorted(wrong.text.split()) == sorted(one.text.split())
    assert wrong.steps[-1] == one.steps[-1]
    assert judged(world, wrong)[:2] == (True, False)


def test_filled():
    one, _, wrong = made(corruptions.filled("check"), WALK)
    assert [len(step.split()) for step in words(wrong)] == [len(step.split()) for step in words(one)]
    assert set("".join(words(wrong)).split()) == {"check"}
    assert wrong.steps[-1] == one.steps[-1]


def test_thinned(world):
    one, _, wrong = made(corruptions.thinned(0.5), world)
    left = iter(words(one))
    assert all(step in left for step in words(wrong))  # a subsequence
    assert len(wrong.steps) < len(one.steps)
    assert corruptions.thinned(0.0)(one, one, random.Random()) == one
    assert words(corruptions.thinned(1.0)(one, one, random.Random())) == []


def test_thinned_by_a_third_on_average():
    plain = [trace for trace in traces(WALK, {"F": 300}) if trace.meta["difficulty"] == 4]
    kept = [len(trace.steps) - 1 for trace in corruptions.corrupt(plain, "some", corruptions.thinned(1 / 3), 0)]
    assert sum(kept) / len(kept) == pytest.approx(4 * 2 / 3, abs=0.3)


def test_without_words():
    one, _, wrong = made(corruptions.without_words({"maybe", "check"}), WALK, teacher="H")
    assert wrong.text.split() == [word for word in one.text.split() if word not in ("maybe", "check")]
    assert len(wrong.steps) == len(one.steps)
    assert judged(WALK, wrong).correct


def test_a_step_that_loses_all_its_words_is_no_step():
    one, _, wrong = made(corruptions.without_words(set(two(WALK, "F")[0].steps[0].text.split())), WALK, teacher="F")
    assert words(wrong)[0] != words(one)[0]
    assert all(words(wrong))


def test_by_another_teacher():
    one, _, other = made(corruptions.by(WALK, "H"), WALK, teacher="F")
    assert (other.teacher, other.prompt) == ("H", one.prompt)
    assert judged(WALK, other)[:2] == (True, True)


def test_in_part():
    plain = list(traces(WALK, {"F": 400}))
    some = list(corruptions.corrupt(plain, "F", corruptions.in_part(corruptions.without_reasoning, 0.25), 0))
    changed = sum(one != other for one, other in zip(plain, some, strict=True))
    assert changed / len(plain) == pytest.approx(0.25, abs=0.07)
    assert list(corruptions.corrupt(plain, "F", corruptions.in_part(corruptions.swapped, 0.0), 0)) == plain


def test_the_same_seed_corrupts_the_same_way(world):
    plain = two(world)
    once, again, other = (list(corruptions.corrupt(plain, "x", corruptions.shuffled, seed)) for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_kinds_are_teachers_with_the_same_problems(tmp_path):
    kinds = {"right": corruptions.as_it_is, "none": corruptions.without_reasoning}
    shards = corruptions.write_kinds(WALK, tmp_path / "shards", kinds, "F", 5, seed=2)
    found = [shards[number].trace for number in range(len(shards))]
    assert [trace.teacher for trace in found] == ["right"] * 5 + ["none"] * 5
    assert [trace.prompt for trace in found[:5]] == [trace.prompt for trace in found[5:]]
    assert [trace.steps[-1] for trace in found[:5]] == [trace.steps[-1] for trace in found[5:]]
    assert [len(trace.steps) for trace in found[5:]] == [1] * 5


def test_the_answer_of_an_encoded_corrupted_trace_is_where_it_says():
    _, other, wrong = made(corruptions.with_another_answer, MAZE)
    tokenizer = MAZE.tokenizer()
    encoded = encode_words(tokenizer.inner.get_vocab(), tokenizer.eos_id, wrong)
    start, stop = encoded.answer
    assert tokenizer.decode(encoded.tokens[start:stop].tolist()) == other.answer
