"""Rollouts: groups by hand, batches field by field, and a pipeline that draws the same again after resuming."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mixdistill.data.corpus import open_corpus
from mixdistill.errors import UserError
from mixdistill.generation import sampler
from mixdistill.generation.drawn import Drawn, choose_groups, spread, to_batch
from mixdistill.generation.judges import (
    exact_answer,
    not_overlong,
    similar_step,
    similar_thought_step,
    world_answer,
    world_reasoning,
)
from mixdistill.generation.measures import measures, pass_at, repeated, staleness
from mixdistill.generation.policy import Policy
from mixdistill.generation.rewards import Rewards
from mixdistill.generation.rollouts import Rollout, Rollouts
from mixdistill.generation.sampler import Generated
from mixdistill.mesh import FSDP, make_mesh
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training import answering
from mixdistill.training.asks import Ask, find_asks
from mixdistill.training.rollout_pipeline import RolloutPipeline

NAN = np.nan
EOS = CHAIN.tokenizer().eos_id


def said(*tokens, ended=True):
    return Generated(np.array(tokens, np.int32), -np.ones(len(tokens), np.float32) / 2, ended, np.zeros(0, np.float32))


def drawn(prompts, completions, rewards, **more):
    count = len(completions)
    parts = {"answer": np.float32(rewards)}
    given = {"drawn_at": np.full(count, 5, np.int32), "distil": np.zeros(count, np.float32), **more}
    place = np.full(count, 7, np.int32), np.full(count, 3, np.int32)
    return Drawn(*place, prompts, completions, Rewards(np.float32(rewards), parts), **given)


def test_spread_and_choice_by_hand():
    total = np.array([[1, 1, 1], [0, 1, NAN], [NAN, NAN, NAN], [0, 0, 3]])
    np.testing.assert_allclose(spread(total), [0, 0.5, 0, np.sqrt(2)])
    assert choose_groups(spread(total) > 0, 2).tolist() == [1, 3]
    assert choose_groups(spread(total) > 0, 3).tolist() == [1, 3, 0]
    assert choose_groups(spread(total) > 0.6, 1).tolist() == [3]


def test_a_batch_by_hand():
    some = drawn([[5, 6], [5, 6]], [said(8, 1), said(9, ended=False)], [1, NAN])
    content = np.zeros(12, bool)
    content[8] = True
    batch = to_batch(some, np.float32([2, 0]), content, 6)
    assert batch["tokens"].tolist() == [[5, 6, 8, 0, 0, 0], [5, 6, 0, 0, 0, 0]]
    assert batch["target"].tolist() == [[6, 8, 1, 0, 0, 0], [6, 9, 0, 0, 0, 0]]
    assert batch["valid"].astype(int).tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6]  # what could not be judged is left out
    assert batch["segment_id"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert batch["teacher_id"][0].tolist() == [3, 3, 3, 0, 0, 0]
    assert batch["advantage"].tolist() == [[0, 2, 2, 0, 0, 0], [0] * 6]
    assert batch["content"].astype(int).tolist() == [[0, 1, 0, 0, 0, 0], [0] * 6]
    assert batch["teacher_logprob"][0, 1:3].tolist() == [-0.5, -0.5]
    assert np.isnan(batch["teacher_logprob"][0, 0])


def test_measures_by_hand():
    lost = said(ended=False)
    some = drawn([[5]] * 4, [said(8, 1), said(9, ended=False), said(8, 8, 1), lost], [1, NAN, 0, NAN])
    found = measures(some, 2, "answer")
    assert found["rollout/answer"] == found["rollout/reward"] == (1, 2)
    assert found["rollout/unverified"] == (1, 3)  # the one that never came is no failure of the verifier
    assert found["rollout/failed"] == (1, 4)
    assert found["rollout/ended"] == (2, 3)
    assert found["rollout/length"] == (6, 3)
    assert found["rollout/repeated"] == (0, 3)
    assert [repeated(np.array(said)) for said in ([1] * 8, [1, 2, 3, 4, 5], [1])] == [0.8, 0.0, 0.0]
    assert found["rollout/nll"] == (3, 6)
    assert found["rollout/pass@1"] == (1, 2)
    assert found["rollout/pass@2"] == (0, 0)  # no group has two that are known
    assert staleness([2, 1, 3, 0], np.array([5, 5, 4, -1]), 6) == {"rollout/stale": (6, 6), "rollout/age": (9, 6)}
    assert staleness([2, 1], np.array([5, -1]), 5) == {"rollout/stale": (1, 3), "rollout/age": (0, 2)}


def test_pass_at_k_is_unbiased():
    right = np.array([[1, 0, 0, 0], [1, 1, 0, NAN], [0, 0, 0, 0]])
    np.testing.assert_allclose(pass_at(right, 1), [1 / 4, 2 / 3, 0])
    np.testing.assert_allclose(pass_at(right, 2), [1 / 2, 1, 0])  # 1 - C(3, 2) / C(4, 2)
    np.testing.assert_allclose(pass_at(right, 4), [1, NAN, 0])
    random = np.random.default_rng(0)
    estimates = pass_at((random.random((20_000, 8)) < 0.3).astype(float), 4)
    assert estimates.mean() == pytest.approx(1 - 0.7**4, abs=4 * estimates.std() / np.sqrt(20_000))


def test_judges_by_hand():
    trace = CHAIN.trace(CHAIN.problem(0, "train", 0), "F")
    right, wrong = trace.text, trace.text.rsplit("=", 1)[0] + f"= {(int(trace.answer) + 1) % 10}"
    rollouts = [Rollout(trace, 0, text, True, 5) for text in (right, wrong, "")]
    assert exact_answer(rollouts) == [1, 0, 0]
    assert not_overlong(10, 10)(rollouts) == [-0.5] * 3
    assert world_answer("chain")(rollouts) == [1, 0, 0]
    assert world_reasoning("chain")(rollouts) == [1, 1, 0]
    first, second = trace.steps[0].text, trace.steps[1].text
    texts = [(1, first), (2, first), (2, "")]
    steps = [Rollout(trace, step, text, True, 5) for step, text in texts]
    assert similar_step(steps)[0] == 1
    assert 0 <= similar_step(steps)[1] < 1
    assert similar_step(steps)[2] == -1
    thoughts = ["<think> " + second + "</think> " + first, first, "<think> </think> "]
    assert similar_thought_step([Rollout(trace, 1, text, True, 5) for text in thoughts]) == [1, -1, -1]
    with pytest.raises(UserError, match="chain"):
        world_answer("chian")


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
    for train_step in range(4):
        states.append(json.loads(json.dumps(whole.get_state())))
        batches.append(whole.read(params, train_step))
        assert whole.tallies["rollout/stale"].sum == (train_step % 2) * whole.num_targets
    same(batches[0], batches[1])  # two updates on one batch
    assert (batches[1]["target"] != batches[2]["target"]).any()
    assert states[0]["held"] is None
    assert states[1]["held"] is not None
    for at in range(4):
        resumed = pipeline_of(source, opened, student)
        resumed.set_state(states[at])
        for train_step in range(at, 4):
            same(resumed.read(params, train_step), batches[train_step])
    assert whole.num_targets == batches[3]["valid"].sum()
    advantage = batches[0]["advantage"].max(1).reshape(2, 4) + batches[0]["advantage"].min(1).reshape(2, 4)
    np.testing.assert_allclose(advantage.sum(1), 0, atol=1e-4)


@pytest.mark.parametrize("max_new", [3, 9])
def test_a_batch_is_one_program_and_one_fetch_however_many_tokens(corpus, talker, monkeypatch, max_new):
    """What is drawn never waits for the host between two tokens, and neither does the train step on it."""
    calls = []

    def counted(name, function):
        return lambda *args, **kwargs: calls.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(sampler, "_decode", counted("program", sampler._decode))
    monkeypatch.setattr(answering, "on_host", counted("fetch", answering.on_host))
    source, opened = corpus
    student, params = talker
    made = pipeline_of(dataclasses.replace(source, max_new=max_new), opened, student)
    for train_step in range(4):  # two updates on each of two batches
        made.read(params, train_step)
    assert calls == ["program", "fetch"] * 2


def test_eight_devices_draw_what_one_draws(corpus, talker):
    source, opened = corpus
    student, params = talker
    one = pipeline_of(source, opened, student).read(params, 0)
    eight = pipeline_of(source, opened, student, devices=8).read(params, 0)
    np.testing.assert_array_equal(one["target"], eight["target"])
    np.testing.assert_allclose(one["teacher_logprob"], eight["teacher_logprob"], atol=1e-5)


def test_flat_groups_are_drawn_anew_and_left_out(corpus, talker):
    _, opened = corpus
    student, params = talker
    flat = setting(opened.shards[0].path, judges={"odd": lambda rollouts: [1.0] * len(rollouts)}, max_rounds=3)
    pipeline = pipeline_of(flat, opened, student)
    assert not pipeline.read(params, 0)["valid"].any()
    assert pipeline.num_targets == 0
    assert pipeline.tallies["rollout/rounds"].sum == 3
    assert pipeline.tallies["rollout/flat_groups"].sum == 6
    lively = pipeline_of(setting(opened.shards[0].path, max_rounds=3), opened, student)
    assert lively.read(params, 0)["valid"].any()
    assert lively.tallies["rollout/rounds"].sum < 3


def test_step_instances(corpus, talker):
    _, opened = corpus
    student, params = talker
    source = setting(opened.shards[0].path, instances="steps", judges={"odd": similar_step})
    asks = find_asks(source, opened)
    trace = opened.shards[0][asks[0].trace_id]
    steps = len(trace.trace.steps)
    assert asks[:steps] == [*(Ask(asks[0].trace_id, step) for step in range(1, steps)), Ask(asks[0].trace_id + 1, 1)]
    batch = pipeline_of(source, opened, student).read(params, 0)
    for row, valid in enumerate(batch["valid"]):
        trace = opened.shards[0][int(batch["trace_id"][row, 0])]
        end = int(np.argmax(valid)) + 1  # of what the student was given
        longest = int((trace.step_id == trace.step_id[end]).sum())
        assert valid.sum() == longest or (valid.sum() < longest and batch["target"][row][valid][-1] == EOS)
    thought = setting(opened.shards[0].path, instances="thought steps", judges={"odd": similar_step})
    assert pipeline_of(thought, opened, student).read(params, 0)["valid"].sum(1).max() > 4


def test_a_sum_over_a_constant_length(corpus, talker):
    _, opened = corpus
    student, params = talker
    by_token = setting(opened.shards[0].path, normalise="none")
    token, place = (
        pipeline_of(dataclasses.replace(by_token, per=per), opened, student).read(params, 0)
        for per in ("token", "max_new")
    )
    valid = token["valid"]
    mean_over_tokens = place["advantage"][valid].sum() / valid.sum()
    np.testing.assert_allclose(mean_over_tokens, token["advantage"][valid].sum() / (by_token.rows * 8), rtol=1e-5)


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
