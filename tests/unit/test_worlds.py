"""What every world promises: pure generation, parts that never overlap, right teachers, words that are tokens."""

import dataclasses
import itertools

import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.traces.encode import encode_prompt, encode_trace
from mixdistill.traces.trace import Verdict
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.countdown import COUNTDOWN
from mixdistill.traces.worlds.maze import maze
from mixdistill.traces.worlds.reach import REACH
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.world import World, part_of, share_words
from mixdistill.traces.worlds.write import encode_words, traces, write_world

WORLDS = [CHAIN, WALK, maze(), COUNTDOWN, REACH]
EACH = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
EACH_TEACHER = pytest.mark.parametrize(
    ("world", "teacher"),
    [(world, teacher) for world in WORLDS for teacher in world.teachers],
    ids=lambda value: getattr(value, "name", value),
)


def samples(world: World, teacher: str, count: int = 8):
    for split in world.splits:
        for problem in world.problems(1, split, count):
            yield problem, world.trace(problem, teacher)


@EACH_TEACHER
def test_every_answer_is_right_and_every_sound_trace_valid(world, teacher):
    judged = [world.judge(problem, trace.text) for problem, trace in samples(world, teacher)]
    assert all(judgement.correct for judgement in judged)
    valid = [judgement.valid for judgement in judged]
    assert all(valid) if world.teachers[teacher].sound else np.mean(valid) < 0.2


@EACH_TEACHER
def test_traces_are_graded_and_carry_reference_fold_and_difficulty(world, teacher):
    for problem, trace in samples(world, teacher, 2):
        assert trace.verdict is Verdict.CORRECT
        assert (trace.teacher, trace.problem_id) == (teacher, problem.id)
        assert trace.reference == problem.answer
        assert trace.answer == world.extract(trace.text)
        assert trace.text.endswith(trace.answer)
        assert trace.meta == {"fold": problem.split, "difficulty": problem.difficulty}


@EACH_TEACHER
def test_one_word_is_one_token_and_decoding_gives_the_text_back(world, teacher):
    tokenizer = world.tokenizer()
    for problem, trace in samples(world, teacher, 2):
        ids = tokenizer.encode(trace.text)
        assert len(ids) == len(trace.text.split())
        assert tokenizer.unk_id not in (*ids, *tokenizer.encode(trace.prompt))
        assert tokenizer.decode(ids) == trace.text
        assert tokenizer.decode(encode_prompt(tokenizer, problem.prompt)).strip() == problem.prompt.strip()


@EACH_TEACHER
def test_encoding_by_words_is_encode_trace(world, teacher):
    tokenizer = world.tokenizer()
    for _, trace in samples(world, teacher, 3):
        fast, slow = encode_words(tokenizer.inner.get_vocab(), tokenizer.eos_id, trace), encode_trace(tokenizer, trace)
        np.testing.assert_array_equal(fast.tokens, slow.tokens)
        np.testing.assert_array_equal(fast.step_id, slow.step_id)
        assert (fast.tokens.dtype, fast.step_id.dtype) == (slow.tokens.dtype, slow.step_id.dtype)
        assert (fast.num_prompt, fast.answer, fast.logprobs) == (slow.num_prompt, slow.answer, slow.logprobs)


@EACH
def test_a_problem_needs_no_other_and_streams_differ(world):
    split = next(iter(world.splits))
    many = world.problems(3, split, 20)
    assert [world.problem(3, split, i) for i in (17, 2)] == [many[17], many[2]]
    assert world.problems(4, split, 20) != many
    assert world.problems(3, split, 20, stream="other") != many
    assert len({problem.prompt for problem in many}) > 10


@EACH
def test_a_problem_is_its_prompt(world):
    for split in world.splits:
        for problem in world.problems(0, split, 5):
            assert world.problem_of(problem.prompt, split) == problem
            assert world.problem_of("  " + problem.prompt.strip().replace(" ", "\n"), split) == problem


@EACH
def test_held_out_problems_are_of_another_part_than_training(world):
    prompts = {split: {p.prompt for p in world.problems(5, split, 60)} for split in world.splits}
    for a, b in itertools.combinations(prompts, 2):
        if world.splits[a].part != world.splits[b].part:
            assert not prompts[a] & prompts[b]
    for split, where in world.splits.items():
        assert {part_of(prompt) for prompt in prompts[split]} == {where.part}


@EACH_TEACHER
def test_an_answer_that_is_replaced_or_missing_is_caught(world, teacher):
    problem = world.problem(2, "train", 0)
    trace = world.trace(problem, teacher)
    other = next(p for p in world.problems(9, problem.split, 50) if p.answer != problem.answer)
    reasoning = trace.text.removesuffix(trace.answer)
    assert not world.verify(problem, reasoning + other.answer)
    assert not world.verify(problem, reasoning)
    assert not world.verify(problem, "")
    assert world.judge(problem, reasoning + other.answer).error


@EACH
def test_errors_are_of_the_list_and_name_what_is_not_right(world):
    for teacher in world.teachers:
        for problem, trace in samples(world, teacher, 3):
            words = trace.text.split()
            for changed in (words[1:], words[:-1], words[::-1], words[:1] + words[2:], [*words, *words], []):
                judgement = world.judge(problem, " ".join(changed))
                assert judgement.error in ("", *world.errors)
                assert (judgement.error == "") == (judgement.correct and judgement.valid)


@EACH
def test_unknown_names_say_what_is_known(world):
    problem = world.problem(0, "train", 0)
    with pytest.raises(UserError, match=f"unknown teacher of world {world.name} 'nobody'"):
        world.trace(problem, "nobody")
    with pytest.raises(UserError, match=r"known: .*train"):
        world.problem(0, "trian", 0)
    with pytest.raises(UserError, match="no sizes"):
        world.problem(0, "train", 0, sizes=[])
    with pytest.raises(UserError, match=f"world {world.name}"):
        world.problem_of("what is this")


@EACH
def test_shards_hold_the_traces_that_were_asked_for(world, tmp_path):
    first, second = list(world.teachers)[:2]
    size = world.splits["train"].sizes[0]
    counts, coverage = {first: 5, second: 3}, {second: [size]}
    shards = write_world(world, tmp_path / "shards", counts, seed=4, coverage=coverage)
    made = list(traces(world, counts, seed=4, coverage=coverage))
    assert [shards[i].trace for i in range(len(shards))] == made
    assert {name: row["num_traces"] for name, row in shards.manifest["teachers"].items()} == counts
    assert shards.folds == ("train",)
    assert shards.tokenizer.hash == world.tokenizer().hash
    alone = world.trace(world.problem(4, "train", 2, stream=second, sizes=[size]), second)
    assert alone == made[7]


@EACH
def test_shards_of_unknown_teachers_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="unknown teacher"):
        write_world(world, tmp_path / "shards", {"nobody": 1})
    with pytest.raises(UserError, match="unknown teacher"):
        write_world(world, tmp_path / "shards", {next(iter(world.teachers)): 1}, coverage={"nobody": [3]})
    assert not (tmp_path / "shards").exists()


def test_a_part_without_problems_is_an_error_and_no_endless_loop():
    stuck = dataclasses.replace(CHAIN, draw=lambda rng, split, size: "? 0 0 : ")
    with pytest.raises(UserError, match="too few problems of size 3"):
        stuck.problem(0, "train" if part_of("? 0 0 : ") != "train" else "test", 0, sizes=[3])


def test_worlds_that_share_words_have_one_tokenizer_and_the_same_traces():
    walk, reach = share_words(WALK, REACH)
    assert walk.tokenizer().hash == reach.tokenizer().hash != WALK.tokenizer().hash
    problem = reach.problem(0, "train", 0)
    assert problem == REACH.problem(0, "train", 0)
    assert reach.trace(problem, "H") == REACH.trace(problem, "H")
    for world in (walk, reach):
        trace = world.trace(world.problem(0, "train", 0), "F")
        assert world.tokenizer().decode(world.tokenizer().encode(trace.text)) == trace.text
