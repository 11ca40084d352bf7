"""On-policy distillation: opinions against plain forward passes, one reference a prompt, probes, GKD's share."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.data.corpus import open_corpus
from mixdistill.errors import UserError
from mixdistill.generation.drawn import DISTIL, REFERENCE
from mixdistill.generation.rollouts import Rollouts
from mixdistill.generation.teaching import ANY, Reference, Teaching
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.mesh import FSDP, make_mesh
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.students.student import batch_of, logits
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.asks import Ask, find_asks, read_trace
from mixdistill.training.checkpoint import Checkpoint, Checkpoints
from mixdistill.training.job import build
from mixdistill.training.position import Position
from mixdistill.training.probes import Probes
from mixdistill.training.references import References
from mixdistill.training.rollout_pipeline import RolloutPipeline
from mixdistill.training.workdir import open_trained, write_about

CONFIG = dataclasses.replace(families.tiny(CHAIN.tokenizer().vocab_size), layers=1, unroll=1)
TOP = 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teaching") / "shards"
    write_world(CHAIN, folder, {"F": 6, "H": 6}, seed=0)
    return folder


@pytest.fixture(scope="module")
def workdirs(shards, tmp_path_factory):
    """Two students that were never trained, as a run leaves them."""
    made = {}
    for seed in (1, 2):
        source = source_of(shards).asked
        stage = Stage("s", 1, dataclasses.replace(source, rows=1, length=32), Objective({"nll": Term(cross_entropy)}))
        job = build(Recipe(name="r", student=CONFIG, stages=(stage,), seed=seed, mesh={}), jax.devices()[:1])
        folder = tmp_path_factory.mktemp(f"reference{seed}")
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(0, Checkpoint(job.initial_state(), Position().to_json(), job.identity))
        write_about(folder, job.identity, job.shards)
        made[seed] = str(folder)
    return made


def size(rollouts):
    return [float(rollout.num_tokens) for rollout in rollouts]


def source_of(shards, teaching=None, **changes):
    given = {"judges": {"size": size}, "weights": {"size": 1.0}, "prompts": 4, "samples": 2, "max_prompt": 8}
    return Rollouts(**{**given, "shards": str(shards), "max_new": 6, "teaching": teaching, **changes})


@pytest.fixture(scope="module")
def talker():
    student = make_student(CONFIG)
    return student, student.init(jax.random.key(3))


def pipeline_of(source, student, devices=1):
    corpus = open_corpus(source.asked)
    mesh = make_mesh({"fsdp": devices}, jax.devices()[:devices])
    return RolloutPipeline(source, corpus, student, len(corpus.teachers), mesh, FSDP)


WIDTH = 64


@jax.jit
def scores(params, tokens):
    student = make_student(CONFIG)
    return jax.nn.log_softmax(logits(student, params, student.hidden(params, batch_of(tokens))[0]))


def plainly(params, tokens):
    """Log-probabilities [T, V] of what follows each token."""
    row = np.zeros((1, WIDTH), np.int32)  # what comes later changes nothing
    row[0, : len(tokens)] = tokens
    return np.asarray(scores(params, row))[: len(tokens)]


def completions(batch):
    """(row, prompt, completion) of token ids."""
    for row, valid in enumerate(batch["valid"]):
        start = int(np.argmax(valid))
        tokens = batch["tokens"][row, : start + 1].tolist()
        yield row, tokens, batch["target"][row][valid].tolist()


@pytest.mark.parametrize("devices", [1, 8])
def test_opinions_are_those_of_one_reference_a_prompt(shards, workdirs, talker, devices):
    student, params = talker
    teaching = Teaching(references={"F": Reference(workdirs[1]), ANY: Reference(workdirs[2])}, top_k=TOP)
    made = pipeline_of(source_of(shards, teaching), student, devices)
    batch = made.read(params, 0)
    trained = {seed: open_trained(Path(folder)) for seed, folder in workdirs.items()}
    asked = set()
    for row, prompt, said in completions(batch):
        teacher = made.corpus.teachers[made.corpus.teacher[batch["trace_id"][row, 0]]]
        asked.add(teacher)
        reference = trained[1 if teacher == "F" else 2]
        expected = plainly(reference.params, [*prompt, *said])[len(prompt) - 1 : -1]
        valid = batch["valid"][row]
        chosen = expected[np.arange(len(said)), said]
        np.testing.assert_allclose(batch[REFERENCE][row][valid], chosen, atol=2e-5)
        best = -np.sort(-expected, axis=-1)[:, :TOP]
        np.testing.assert_allclose(batch["teacher_topk_logprob"][row][valid], best, atol=2e-5)
        at_ids = np.take_along_axis(expected, batch["teacher_topk_ids"][row][valid], axis=-1)
        np.testing.assert_allclose(at_ids, best, atol=2e-5)
        tail = batch["teacher_tail_logprob"][row][valid]
        np.testing.assert_allclose(np.exp(tail), 1 - np.exp(best).sum(-1), atol=2e-5)
        assert (batch[DISTIL][row][valid] == 1).all()
    assert asked == {"F", "H"}


def test_the_student_itself_told_the_solution(shards, talker):
    student, params = talker
    alike, told = (
        pipeline_of(source_of(shards, Teaching(references={ANY: Reference(None, context)})), student)
        for context in ("{prompt}", "{solution} {prompt}")
    )
    batch, richer = alike.read(params, 0), told.read(params, 0)
    np.testing.assert_array_equal(batch["target"], richer["target"])
    valid = batch["valid"]
    np.testing.assert_allclose(batch[REFERENCE][valid], batch["teacher_logprob"][valid], atol=2e-5)
    tokenizer = told.corpus.shards[0].tokenizer
    for row, prompt, said in completions(richer):
        trace = read_trace(told.corpus, int(richer["trace_id"][row, 0])).trace
        context = [*tokenizer.encode(f"{trace.text} {trace.prompt}")]
        assert context[-len(prompt) :] == prompt
        expected = plainly(params, [*context, *said])[len(context) - 1 : -1]
        got = richer[REFERENCE][row][richer["valid"][row]]
        np.testing.assert_allclose(got, expected[np.arange(len(said)), said], atol=2e-5)
    assert abs(richer[REFERENCE] - batch[REFERENCE]).max() > 0.01


def test_a_share_of_the_batches_is_recorded(shards, talker):
    student, params = talker
    teaching = Teaching(references={ANY: Reference(None)}, own_share=0.5)
    made = pipeline_of(source_of(shards, teaching, max_rounds=2, max_new=20), student)
    own = []
    for train_step in range(8):
        batch = made.read(params, train_step)
        own.append(made.tallies["rollout/own"].sum == 1)
        assert ("rollout/reward" in made.tallies) == own[-1]
        if own[-1]:
            assert (batch["teacher_id"][batch["valid"]] == 2).all()
            continue
        for row, prompt, said in completions(batch):
            trace = read_trace(made.corpus, int(batch["trace_id"][row, 0]))
            assert [*prompt, *said] == trace.tokens.tolist()
            assert batch["teacher_id"][row, 0] == made.corpus.teacher[batch["trace_id"][row, 0]]
        assert np.isnan(batch["teacher_logprob"]).all()
    assert 0 < sum(own) < 8


def odd_size(rollouts):
    return [float(rollout.num_tokens % 2) for rollout in rollouts]


def test_prompts_are_distilled_where_the_reference_is_right_and_reinforced_elsewhere(shards, workdirs, talker):
    student, params = talker
    teaching = Teaching(references={ANY: Reference(workdirs[1])}, probes=3, trusted=1 / 3)
    source = source_of(shards, teaching, judges={"size": size, "odd": odd_size}, verifier="odd")
    made = pipeline_of(source, student)
    routes = {}
    for train_step in range(3):
        batch = made.read(params, train_step)
        for row, valid in enumerate(batch["valid"]):
            (route,) = set(batch[DISTIL][row][valid].tolist())
            assert routes.setdefault(int(batch["trace_id"][row, 0]), route) == route
    assert set(routes.values()) == {0, 1}
    mesh = make_mesh({}, jax.devices()[:1])
    references = References(teaching, made.corpus, student, mesh, FSDP)
    asks = [ask for ask in find_asks(source, made.corpus) if ask.trace_id in routes]
    for some in (asks[::-1], asks[:4]):  # whoever else is probed with it
        traces = [read_trace(made.corpus, ask.trace_id) for ask in some]
        trusted = Probes(source, references, mesh, FSDP).trusted(some, traces)
        assert trusted.tolist() == [routes[ask.trace_id] == 1 for ask in some]


def test_a_probe_that_cannot_be_verified_is_not_trusted(shards, workdirs, talker):
    source = source_of(
        shards,
        Teaching(references={ANY: Reference(workdirs[1])}, probes=3, trusted=0.3),
        judges={"size": size, "never": lambda rollouts: [np.nan] * len(rollouts)},
        verifier="never",
    )
    mesh, corpus = make_mesh({}, jax.devices()[:1]), open_corpus(source.asked)
    probes = Probes(source, References(source.teaching, corpus, talker[0], mesh, FSDP), mesh, FSDP)
    asks = [Ask(0, 0), Ask(7, 0), Ask(1, 0), Ask(2, 0)]
    assert not probes.trusted(asks, [read_trace(corpus, ask.trace_id) for ask in asks]).any()


def test_bad_settings(shards, workdirs, talker):
    with pytest.raises(UserError, match="workdir"):
        Teaching(references={ANY: Reference(None)}, probes=3)
    with pytest.raises(UserError, match="own_share"):
        Teaching(references={ANY: Reference(None)}, own_share=2.0)
    with pytest.raises(UserError, match="prompt"):
        Reference(None, context="think")
    with pytest.raises(UserError, match="verifier"):
        source_of(shards, Teaching(references={ANY: Reference("x")}, probes=3))
    with pytest.raises(UserError, match="known: F, H"):
        pipeline_of(source_of(shards, Teaching(references={"X": Reference(workdirs[1])})), talker[0])
    with pytest.raises(UserError, match="no reference answers for teacher 'H'"):
        pipeline_of(source_of(shards, Teaching(references={"F": Reference(workdirs[1])})), talker[0])
    with pytest.raises(UserError, match="no run at"):
        pipeline_of(source_of(shards, Teaching(references={ANY: Reference("nowhere")})), talker[0])
