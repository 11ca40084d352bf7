"""Tasks, greedy answers, calibration, summaries and held-out NLL, on a student that is one bigram table."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.data.corpus import open_corpus
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.evaluation.answers import UNFINISHED, answer, token_span
from mixdistill.evaluation.calibration import calibration_bins, expected_calibration_error
from mixdistill.evaluation.held_out import held_out, one_pass
from mixdistill.evaluation.intervals import wilson
from mixdistill.evaluation.summary import lines, summarise
from mixdistill.evaluation.tasks import Judged, Task, shards_task, world_task
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.students.student import Student
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import train_bpe, word_level
from mixdistill.traces.trace import Step, Trace
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.find import find_world
from mixdistill.traces.worlds.world import Problem
from mixdistill.training.state import TrainState
from mixdistill.training.step import make_eval_step

WORDS = ("p", "q", "r", "so", "5", "6")
TOKENIZER = word_level(WORDS)
IDS = TOKENIZER.inner.get_vocab()
SIZE = TOKENIZER.vocab_size


def bigram(successors: dict[str, str]) -> tuple[Student, dict]:
    """After `word` comes its successor with logit 2, anything else with logit 0."""
    table = np.zeros((SIZE, SIZE), np.float32)
    for word, after in successors.items():
        table[IDS[word], IDS[after]] = 2.0
    student = Student(
        lambda key: {"table": jnp.zeros((SIZE, SIZE))},
        lambda params, batch: params["table"][batch["tokens"]],
        lambda params: jnp.eye(SIZE),
        {"table": ("vocab", "embed")},
        SIZE,
    )
    return student, {"table": jnp.asarray(table)}


LIKELY = math.exp(2) / (math.exp(2) + SIZE - 1)


def exact(problems, completions):
    found = [text.split()[-1] if text else "" for text in completions]
    return [
        Judged(word == p.answer, "" if word == p.answer else "wrong", word)
        for p, word in zip(problems, found, strict=True)
    ]


def problem(prompt: str, reference: str, difficulty: int = 1) -> Problem:
    return Problem(prompt, prompt, reference, difficulty, "test")


@pytest.fixture(scope="module")
def answers():
    problems = (problem("p", "5"), problem("q", "5", 2), problem("r", "5", 2))
    student, params = bigram({"p": "so", "so": "5", "5": "<eos>", "q": "6", "6": "<eos>", "r": "r"})
    return answer(student, params, Task("toy", problems, exact, ("wrong",)), TOKENIZER, max_new=4)


def test_answers_are_the_most_likely_completions(answers):
    assert [one.text for one in answers] == ["so 5", "6", "r r r r"]
    assert [one.correct for one in answers] == [True, False, False]
    assert [one.finished for one in answers] == [True, True, False]
    assert [one.error for one in answers] == ["", "wrong", UNFINISHED]
    assert [one.num_tokens for one in answers] == [3, 2, 4]


def test_confidence_is_the_probability_of_the_answers_tokens(answers):
    np.testing.assert_allclose([one.confidence for one in answers], [LIKELY] * 3, rtol=1e-5)


def test_summary(answers):
    summary = summarise(answers)
    assert summary.accuracy.mean == pytest.approx(1 / 3)
    assert summary.finished == pytest.approx(2 / 3)
    assert summary.errors == {"wrong": 1, UNFINISHED: 1}
    assert {d: (i.mean, n) for d, (i, n) in summary.by_difficulty.items()} == {1: (1.0, 1), 2: (0.0, 2)}
    assert summary.calibration_error == pytest.approx(abs(1 / 3 - LIKELY), abs=1e-6)
    assert math.isnan(summary.valid)
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["valid"] is None
    text = "\n".join(lines("toy", summary))
    assert "0.333 [" in text
    assert "wrong 1, unfinished 1" in text
    assert "valid" not in text


@pytest.mark.parametrize("trials", range(1, 40))
def test_an_interval_of_none_or_all_stays_inside(trials):
    assert (wilson(0, trials).low, wilson(trials, trials).high) == (0.0, 1.0)


def test_calibration_bins_by_hand():
    sure, right = np.array([0.05, 0.95, 1.0, 0.91, np.nan]), np.array([False, True, False, True, True])
    bins = calibration_bins(sure, right)
    assert bins[0] == (0.05, 0.0, 1)
    assert bins[5] == (0.0, 0.0, 0)
    assert bins[9] == (pytest.approx(2.86 / 3), pytest.approx(2 / 3), 3)


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.15, 0.12, np.nan])
    correct = np.array([True, False, False, False, True])
    # Bin 9: accuracy 0.5 against 0.95, two of four; bin 1: 0 against 0.135, two of four.
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.5 * 0.45 + 0.5 * 0.135)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0
    assert math.isnan(expected_calibration_error(np.array([np.nan]), np.array([True])))


@pytest.mark.parametrize("tokens", ["as encoded", "byte by byte"])
def test_the_tokens_of_an_answer_are_found_however_the_student_spells_it(tokens):
    tokenizer = train_bpe(["the answer is twelve, naïve or not"] * 5, 300)
    text = "naïve: the answer is twelve."
    ids = tokenizer.encode(text)
    if tokens == "byte by byte":
        ids = [i for token in ids for i in _bytes_of(tokenizer, token)]
    first = text.index("twelve")
    start, stop = token_span(tokenizer, np.array(ids), first, first + len("twelve"))
    assert tokenizer.decode(ids[start:stop]).strip() == "twelve"
    assert start > 0


def _bytes_of(tokenizer, token: int) -> list[int]:
    return [tokenizer.inner.token_to_id(character) for character in tokenizer.inner.id_to_token(token)]


def test_a_world_is_judged_by_its_verifier():
    task = world_task(find_world("chain"), "test", 6)
    assert task.problems == tuple(CHAIN.problems(0, "test", 6))
    texts = [CHAIN.trace(p, "F").text for p in task.problems[:5]] + ["maybe ="]
    judged = task.judge(task.problems, texts)
    assert [j.correct for j in judged] == [True] * 5 + [False]
    assert all(j.valid and not j.error for j in judged[:5])
    assert [j.answer for j in judged[:5]] == [p.answer for p in task.problems[:5]]
    assert judged[5].error in task.errors
    with pytest.raises(UserError, match="unknown world 'chian'; did you mean 'chain'"):
        find_world("chian")


def trace(number: int, teacher: str, fold: str, answer: str = "5", reference: str = "5", words: str = "so") -> Trace:
    steps = (Step(f"{words} "), Step(answer))
    return Trace(f"p{number}", "pqr"[number % 3], steps, answer, teacher, reference=reference, meta={"fold": fold})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    held = [trace(n, t, "b", words="so " * (1 + n % 4)) for n in range(9) for t in ("ann", "bob")]
    traces = [*held, trace(20, "ann", "a"), trace(21, "ann", "b", reference="")]
    return prepare_traces(traces, tmp_path_factory.mktemp("held") / "shards", tokenizer=TOKENIZER)


def test_problems_of_shards_come_once_and_need_a_reference(shards):
    task = shards_task(shards, ("b",))
    assert [p.id for p in task.problems] == [f"p{n}" for n in range(9)]
    assert len(shards_task(shards, None).problems) == 10
    assert len(shards_task(shards, None, 3).problems) == 3
    judged = task.judge(task.problems[:3], ["the answer is 5", "the answer is 6", "no idea"])
    assert [(j.correct, j.error) for j in judged] == [(True, ""), (False, "wrong answer"), (False, "no answer")]
    with pytest.raises(UserError, match="unknown fold"):
        shards_task(shards, ("c",))


def by_hand(shards, params, fold: str) -> dict[str, tuple[float, int]]:
    """{teacher: (sum of NLL in nats, tokens)}, trace by trace and token by token."""
    table = np.asarray(jax.nn.log_softmax(params["table"]))
    found = {name: [0.0, 0] for name in shards.teachers}
    for index in range(len(shards)):
        encoded = shards[index]
        if encoded.trace.meta["fold"] == fold:
            for at in range(encoded.num_prompt, len(encoded.tokens)):
                found[encoded.trace.teacher][0] -= float(table[encoded.tokens[at - 1], encoded.tokens[at]])
                found[encoded.trace.teacher][1] += 1
    return {name: tuple(pair) for name, pair in found.items()}


@pytest.mark.parametrize(("rows", "length"), [(2, 16), (3, 9)])
def test_held_out_nll_counts_every_trace_once_whatever_the_batches(shards, rows, length):
    student, params = bigram({"p": "so", "so": "so", "5": "<eos>"})
    corpus = open_corpus(Mixture(shards=str(shards.path), rows=rows, length=length, folds=("b",)))
    objective = Objective({"nll": Term(cross_entropy)}).with_teachers(shards.teachers)
    state = TrainState(jnp.zeros((), jnp.int32), params, (), {})
    step = jax.jit(make_eval_step(student, objective))
    batches = list(one_pass(corpus, rows, length))
    seen = np.concatenate([np.unique(batch["trace_id"]) for batch in batches])
    assert sorted(seen[seen >= 0]) == sorted(np.concatenate(corpus.pools))
    tallies = held_out(step, state, batches, objective)
    want = by_hand(shards, params, "b")
    for k, name in enumerate(shards.teachers):
        assert tallies["teacher/nll"].weight[k] == want[name][1]
        np.testing.assert_allclose(tallies["teacher/nll"].sum[k], want[name][0], rtol=1e-5)
