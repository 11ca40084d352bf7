"""Rollouts: groups by hand, batches field by field, and a pipeline that draws the same again after resuming."""

import json

import jax
import numpy as np
import pytest

from mixdistill.data.corpus import open_corpus
from mixdistill.errors import UserError
from mixdistill.generation.judges import exact_answer, not_overlong, similar_step
from mixdistill.generation.policy import Policy
from mixdistill.generation.rewards import Rewards
from mixdistill.generation.rollouts import Drawn, Rollout, Rollouts, choose_groups, measures, spread, to_batch
from mixdistill.generation.sampler import Generated
from mixdistill.mesh import FSDP, make_mesh
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.rollout_pipeline import Ask, RolloutPipeline, find_asks

NAN = np.nan


def said(*tokens, ended=True):
    return Generated(np.array(tokens, np.int32), -np.ones(len(tokens), np.float32) / 2, ended, np.zeros(0, np.float32))


def test_spread_and_choice_by_hand():
    total = np.array([[1, 1, 1], [0, 1, NAN], [NAN, NAN, NAN], [0, 0, 3]])
    np.testing.assert_allclose(spread(total), [0, 0.5, 0, np.sqrt(2)])
    assert choose_groups(total, 2, 0.0).tolist() == [1, 3]
    assert choose_groups(total, 3, 0.0).tolist() == [1, 3, 0]
    assert choose_groups(total, 1, 0.6).tolist() == [3]


def test_a_batch_by_hand():
    rewards = Rewards(np.float32([1, NAN]), {"answer": np.float32([1, NAN])})
    drawn = Drawn(np.int32([7, 7]), [[5, 6], [5, 6]], [said(8, 1), said(9, ended=False)], rewards)
    content = np.zeros(12, bool)
    content[8] = True
    batch = to_batch(drawn, np.float32([2, 0]), 3, content, 6)
    assert batch["tokens"].tolist() == [[5, 6, 8, 0, 0, 0], [5, 6, 0, 0, 0, 0]]
    assert batch["target"].tolist() == [[6, 8, 1, 0, 0, 0], [6, 9, 0, 0, 0, 0]]
    assert batch["valid"].astype(int).tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6]  # what could not be judged is left out
    assert batch["segment_id"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert batch["advantage"].tolist() == [[0, 2, 2, 0, 0, 0], [0] * 6]
    assert batch["content"].astype(int).tolist() == [[0, 1, 0, 0, 0, 0], [0] * 6]
    assert batch["teacher_logprob"][0, 1:3].tolist() == [-0.5, -0.5]
    assert np.isnan(batch["teacher_logprob"][0, 0])
    found = measures(drawn, 2)
    assert found["rollout/reward"] == (1, 1)
    assert found["rollout/unverified"] == (1, 2)
    assert found["rollout/length"] == (3, 2)
    assert found["rollout/nll"] == (1.5, 3)


def test_judges_by_hand():
    trace = CHAIN.trace(CHAIN.problem(0, "train", 0), "F")
    right, wrong = trace.text, trace.text.rsplit("=", 1)[0] + f"= {(int(trace.answer) + 1) % 10}"
    rollouts = [Rollout(trace, 0, text, True, 5) for text in (right, wrong, "")]
    assert exact_answer(rollouts) == [1, 0, 0]
    assert not_overlong(10, 10)(rollouts) == [-0.5] * 3
    first, second = trace.steps[0].text, trace.steps[1].text
    steps = [
        Rollout(trace, 1, first + second, True, 5),
        Rollout(trace, 2, first, True, 5),
        Rollout(trace, 2, "", True, 1),
    ]
    assert similar_step(steps)[0] == 1
    assert similar_step(steps)[1] < 1
    assert similar_step(steps)[2] == -1


def odd_length(rollouts):
    """A reward that depends on every token that is drawn."""
    return [float(rollout.num_tokens % 2) + 0.1 * rollout.text.count("1") for rollout in rollouts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain") / "shards"
    write_world(CHAIN, folder, {"F": 12, "H": 12}, seed=0)
    source = setting(folder)
    return source, open_corpus(source.asked)


def setting(folder, **changes):
    given = {
        "shards": str(folder),
        "judges": {"odd": odd_length},
        "weights": {"odd": 1.0},
        "prompts": 2,
        "samples": 4,
        "max_prompt": 16,
        "max_new": 8,
        "policy": Policy(temperature=1.5),
        "updates": 2,
    }
    return Rollouts(**{**given, **changes})


@pytest.fixture(scope="module")
def talker():
    student = make_student(families.tiny(CHAIN.tokenizer().vocab_size))
    return student, student.init(jax.random.key(1))


def pipeline_of(source, corpus, student, devices=1, **settings):
    mesh = make_mesh({"fsdp": devices}, jax.devices()[:devices])
    return RolloutPipeline(source, corpus, student, len(corpus.teachers), mesh, FSDP, **settings)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_resuming_draws_the_same(corpus, talker):
    source, opened = corpus
    student, params = talker
    whole = pipeline_of(source, opened, student)
    batches, states = [], []
    for _ in range(4):
        states.append(json.loads(json.dumps(whole.get_state())))
        batches.append(whole.read(params))
    same(batches[0], batches[1])  # two updates on one batch
    assert (batches[1]["target"] != batches[2]["target"]).any()
    assert states[0]["held"] is None
    assert states[1]["held"] is not None
    for at in range(4):
        resumed = pipeline_of(source, opened, student)
        resumed.set_state(states[at])
        for batch in batches[at:]:
            same(resumed.read(params), batch)
    assert whole.num_targets == batches[3]["valid"].sum()
    advantage = batches[0]["advantage"].max(1).reshape(2, 4) + batches[0]["advantage"].min(1).reshape(2, 4)
    np.testing.assert_allclose(advantage.sum(1), 0, atol=1e-4)


def test_eight_devices_draw_what_one_draws(corpus, talker):
    source, opened = corpus
    student, params = talker
    one = pipeline_of(source, opened, student).read(params)
    eight = pipeline_of(source, opened, student, devices=8).read(params)
    np.testing.assert_array_equal(one["target"], eight["target"])
    np.testing.assert_allclose(one["teacher_logprob"], eight["teacher_logprob"], atol=1e-5)


def test_flat_groups_are_drawn_anew(corpus, talker):
    _, opened = corpus
    student, params = talker
    flat = setting(opened.shards[0].path, judges={"odd": lambda rollouts: [1.0] * len(rollouts)}, max_rounds=3)
    pipeline = pipeline_of(flat, opened, student)
    batch = pipeline.read(params)
    assert not batch["advantage"].any()
    assert pipeline.tallies["rollout/rounds"].sum == 3
    assert pipeline.tallies["rollout/flat_groups"].sum == 2
    lively = pipeline_of(setting(opened.shards[0].path, max_rounds=3), opened, student)
    lively.read(params)
    assert lively.tallies["rollout/rounds"].sum < 3


def test_step_instances(corpus, talker):
    _, opened = corpus
    student, params = talker
    source = setting(opened.shards[0].path, instances="steps", judges={"step": similar_step}, weights={"step": 1.0})
    asks = find_asks(source, opened)
    trace = opened.shards[0][asks[1].trace_id]
    assert asks[:2] == [Ask(asks[0].trace_id, 1), Ask(asks[0].trace_id, 2)]
    batch = pipeline_of(source, opened, student).read(params)
    assert batch["valid"].any()
    assert len({ask.step for ask in asks}) > 2
    assert trace.trace.steps[0].text.split() == [
        opened.shards[0].tokenizer.decode([t]) for t in trace.tokens[trace.num_prompt : trace.num_prompt + 3]
    ]


def test_problems_are_asked_once_whoever_solved_them(corpus):
    source, opened = corpus
    asks = find_asks(source, opened)
    problems = [int(opened.shards[0].index["problem"][ask.trace_id]) for ask in asks]
    assert len(set(problems)) == len(problems)
    assert set(problems) == set(map(int, opened.shards[0].index["problem"]))


def test_bad_settings(corpus):
    _source, opened = corpus
    folder = opened.shards[0].path
    for changes, word in (
        ({"weights": {"od": 1.0}}, "odd"),
        ({"weights": {}}, "at least one judge"),
        ({"samples": 0}, "samples"),
        ({"normalise": "mean"}, "population"),
        ({"instances": "step"}, "steps"),
    ):
        with pytest.raises(UserError, match=word):
            setting(folder, **changes)
    with pytest.raises(UserError, match="max_prompt=2"):
        find_asks(setting(folder, max_prompt=2), opened)
    with pytest.raises(UserError, match="teacher"):
        pipeline_of(setting(folder, references={"X": "runs/x"}), opened, None)
