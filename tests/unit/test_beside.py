"""What a mixture adds to a batch from beside the shards: scores of a ledger, tags, one trace a problem, turns."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mixdistill.commands.trained import tag_of
from mixdistill.data.corpus import open_corpus
from mixdistill.data.ledger import blocks, write_about, write_block
from mixdistill.data.mixture import Mixture, Scores, Select, Tags, Within
from mixdistill.data.pipeline import make_pipeline
from mixdistill.data.planner import Planner
from mixdistill.errors import UserError
from mixdistill.gates import has_teacher_topk, worst_token
from mixdistill.losses import cross_entropy, forward_kl, skew_kl
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.recipe.curriculum import anchor_first, in_order, pooled
from mixdistill.routers import acceptance
from mixdistill.signals.signal import use
from mixdistill.students.families import tiny
from mixdistill.students.student import Student
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace, Verdict
from mixdistill.training.hooks import read_metrics
from mixdistill.training.job import build
from mixdistill.training.loop import run

TOKENIZER = word_level(["a", "b", "c", "d", "x", "y", "by"])
STUDENT = "f" * 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six problems, each by teachers x and y; those of y are longer, every third one is wrong."""
    verdict = [Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG, Verdict.UNGRADED]
    traces = [
        Trace(f"p{i // 2}", "a b", (Step("c d "), Step("a " * (i % 2 + 1))), "a", "xy"[i % 2], verdict[i % 4])
        for i in range(12)
    ]
    made = prepare_traces(traces, tmp_path_factory.mktemp("beside") / "shards", tokenizer=TOKENIZER)
    score_by_hand(made, made.path.with_name("shards.ledger"))
    return made


def score_by_hand(shards, sidecar, tokenizer=None, stop=None):
    """The log-probability of completion token j of trace i is -(i + j / 10); two likeliest tokens that say the same."""
    folder = sidecar / STUDENT[:16]
    write_about(folder, {"student": STUDENT, "name": "s", "tokenizer": tokenizer or shards.manifest["tokenizer"]})
    sizes = [len(shards[i].tokens) - shards[i].num_prompt for i in range(len(shards))]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    logprob = np.concatenate([-(i + np.arange(n) / 10) for i, n in enumerate(sizes)]).astype(np.float16)
    summary = {"surprisal": np.arange(len(shards), dtype=np.float32)}
    summary["surprisal"][0] = np.nan
    for context, fields in (
        ("full", {"label_logprob": logprob}),
        (
            "topk-2",
            {
                "topk_id": np.stack([np.full(len(logprob), 3), np.arange(len(logprob)) % 5], 1).astype(np.int32),
                "topk_logprob": np.stack([logprob, logprob - 1], 1),
                "topk_tail_logprob": logprob - 2,
            },
        ),
    ):
        for block in blocks(folder, shards, context):
            write_block(block.path, offsets, fields, summary if context == "full" else {})


def mixture(shards, **changes):
    return Mixture(**{"shards": str(shards.path), "rows": 2, "length": 12, **changes})


def batches(source, count=4):
    pipeline = make_pipeline(source, read_ahead=0)
    found = [next(pipeline) for _ in range(count)]
    pipeline.close()
    return found


FIELDS = {
    "reference_logprob": Scores(),
    "seen": Scores(name="summary/surprisal"),
    "trace_correct": Scores(name="verdict"),
    "teacher_topk": Scores(name="topk", context="topk-2"),
}


def test_scores_lie_at_the_tokens_that_they_are_of(shards):
    for batch in batches(mixture(shards, fields=FIELDS)):
        assert batch["teacher_topk_ids"].shape == (2, 12, 2)
        for r, c in np.ndindex(2, 12):
            trace = int(batch["trace_id"][r, c])
            if not batch["valid"][r, c]:
                assert np.isnan(batch["reference_logprob"][r, c])
                assert np.isnan(batch["teacher_topk_logprob"][r, c]).all()
                continue
            j = batch["position"][r, c] + 1 - shards[trace].num_prompt
            np.testing.assert_allclose(batch["reference_logprob"][r, c], -(trace + j / 10), rtol=1e-3)
            np.testing.assert_allclose(batch["teacher_topk_logprob"][r, c, 1], -(trace + j / 10) - 1, rtol=1e-3)
            np.testing.assert_allclose(batch["teacher_tail_logprob"][r, c], -(trace + j / 10) - 2, rtol=1e-3)
            assert batch["teacher_topk_ids"][r, c, 0] == 3
            np.testing.assert_array_equal(batch["seen"][r, c], np.nan if trace == 0 else trace)
            said = shards.verdicts[shards.index["verdict"][trace]]
            np.testing.assert_array_equal(
                batch["trace_correct"][r, c], {"correct": 1, "wrong": 0, "ungraded": np.nan}[said]
            )


def test_a_cut_trace_keeps_the_scores_of_what_is_left(shards):
    (batch,) = batches(mixture(shards, fields={"s": Scores()}, length=4, too_long="truncate"), 1)
    trace, valid = batch["trace_id"][0, 0], batch["valid"][0]
    np.testing.assert_allclose(batch["s"][0, valid], -(trace + np.arange(valid.sum()) / 10), rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": Scores(name="label_logprop")}, "label_logprop.*label_logprob"),
        ({"r": Scores(name="summary/surprise")}, "surprise.*surprisal"),
        ({"r": Scores(context="alone")}, "holds no 'alone' scores"),
        ({"r": Scores(sidecar="/nowhere")}, "no student is in the ledger"),
    ],
)
def test_scores_that_are_not_there(fields, message, shards):
    with pytest.raises(UserError, match=message):
        open_corpus(mixture(shards, fields=fields))


def test_scores_of_another_tokenizer_are_refused(shards, tmp_path):
    score_by_hand(shards, tmp_path / "other", tokenizer="0" * 64)
    with pytest.raises(UserError, match=r"of tokenizer 000000000000, shards .* of "):
        open_corpus(mixture(shards, fields={"r": Scores(sidecar=str(tmp_path / "other"))}))


def test_one_trace_a_problem(shards):
    numbers = shards.index["problem"]
    for keep, best in (("lowest", min), ("highest", max)):
        corpus = open_corpus(mixture(shards, select=Select(by=Scores(name="summary/surprisal"), keep=keep)))
        drawn = sorted(np.concatenate(corpus.pools).tolist())
        want = [best(i for i in np.flatnonzero(numbers == p).tolist() if i) for p in range(6)]  # trace 0 has no score
        assert drawn == sorted(want)


def test_selection_is_among_the_traces_that_are_wanted(shards):
    by = Select(by=Scores(name="summary/surprisal"))
    corpus = open_corpus(mixture(shards, select=by, teachers=("y",)))
    assert [len(pool) for pool in corpus.pools] == [0, 6]
    wrong = open_corpus(mixture(shards, select=by, verdicts=("wrong",)))
    assert {shards.index["verdict"][i] for pool in wrong.pools for i in pool} == {shards.verdicts.index("wrong")}
    with pytest.raises(UserError, match=r"lowst.*lowest"):
        Select(by=Scores(name="verdict"), keep="lowst")
    with pytest.raises(UserError, match="a number a trace"):
        Select(by=Scores())


@pytest.mark.parametrize("text", ["by {teacher}", None])
def test_tags_stand_in_front_and_are_not_trained_on(text, shards):
    source = mixture(shards, length=10, tags=Tags(text=text, drop=0.4))
    bare = 0
    for batch in batches(source, 8):
        for r in range(2):
            for segment in range(1, batch["segment_id"][r].max() + 1):
                at = batch["segment_id"][r] == segment
                trace = int(batch["trace_id"][r, at][0])
                tokens, teacher = shards[trace].tokens, int(shards.index["teacher_id"][trace])
                tag = TOKENIZER.encode(f"by {'xy'[teacher]}") if text else [TOKENIZER.vocab_size + teacher]
                found, valid = batch["tokens"][r, at].tolist(), batch["valid"][r, at]
                if found[: len(tag)] == tag:
                    assert found == [*tag, *tokens[:-1]]
                    assert batch["step_id"][r, at].tolist() == [0] * len(tag) + shards[trace].step_id[1:].tolist()
                else:
                    bare += 1
                    assert found == tokens[:-1].tolist()
                assert batch["position"][r, at].tolist() == list(range(len(found)))
                assert batch["target"][r, at][valid].tolist() == tokens[shards[trace].num_prompt :].tolist()
    assert 2 < bare < 20  # a share of 0.4 of about 32 traces


def test_a_tag_without_tokens_and_one_without_a_name_are_refused(shards):
    with pytest.raises(UserError, match="no tokens for the tag 'of x'"):
        open_corpus(mixture(shards, tags=Tags(text="of {teacher}")))
    with pytest.raises(UserError, match="does not name its teacher"):
        Tags(text="by somebody")
    with pytest.raises(UserError, match="probability 2"):
        Tags(drop=2)


def test_teachers_take_turns(shards):
    source = mixture(shards, rows=1, turns=2)
    planner = Planner(corpus := open_corpus(source), source)
    state, taught = planner.start(), []
    for _ in range(8):
        plan, state = planner.plan(state)
        taught.append({int(corpus.teacher[place.trace_id]) for place in plan.places})
    assert taught == [{0}, {0}, {1}, {1}] * 2
    with pytest.raises(UserError, match="at least 1 train step"):
        mixture(shards, turns=0)


NEVER_BARE = "stages.0.source.tags.text = None\nstages.0.source.tags.drop = 0.0\n"


def recipe_text(tags):
    return f"stages.0.source.tags = mixdistill.data.mixture:Tags\n{tags}" if tags else "stages.0.source.tags = None\n"


@pytest.mark.parametrize(
    ("tags", "asked", "want"),
    [
        ("stages.0.source.tags.text = 'by {teacher}'\nstages.0.source.tags.drop = 0.1\n", "y", ["by", "y"]),
        ("stages.0.source.tags.text = None\nstages.0.source.tags.drop = 0.1\n", "y", TOKENIZER.vocab_size + 1),
        ("stages.0.source.tags.text = None\nstages.0.source.tags.drop = 0.1\n", None, []),
        (
            "stages.0.source.tags.text = None\nstages.0.source.tags.drop = 0.0\n",
            None,
            "every trace .* --tag, one of x, y",
        ),
        (NEVER_BARE, "z", r"'z'.*x, y"),
        ("", "y", "has no tags"),
    ],
)
def test_the_tag_that_an_evaluation_puts_in_front(tags, asked, want):
    identity = SimpleNamespace(recipe=recipe_text(tags), teachers=("x", "y"))
    found = SimpleNamespace(identity=identity, tokenizer=TOKENIZER)
    args = SimpleNamespace(tag=asked, workdir="runs/x")
    if isinstance(want, str):
        with pytest.raises(UserError, match=want):
            tag_of(args, found)
    else:
        ids = [want] if isinstance(want, int) else TOKENIZER.encode(" ".join(want))
        assert tag_of(args, found) == ids


def test_traces_between_quantiles(shards):
    def drawn(low, high, **changes):
        within = Within(by=Scores(name="summary/surprisal"), low=low, high=high)
        return sorted(np.concatenate(open_corpus(mixture(shards, within=within, **changes)).pools).tolist())

    assert drawn(0, 0.5) == [1, 2, 3, 4, 5, 6]  # of eleven: trace 0 has no score
    assert drawn(0.5, 1) == [7, 8, 9, 10, 11]
    assert drawn(0, 0.5, teachers=("y",)) == [1, 3, 5]
    with pytest.raises(UserError, match=r"quantiles 0.5 and 0.5"):
        Within(by=Scores(), low=0.5, high=0.5)
    with pytest.raises(UserError, match="a number a trace"):
        open_corpus(mixture(shards, within=Within(by=Scores())))


IMITATE = Objective({"imitate": Term(cross_entropy)})


def test_a_curriculum_by_score_keeps_the_budget(shards):
    stage = Stage("teach", 10, mixture(shards), IMITATE)
    parts = in_order(stage, Scores(name="summary/surprisal"), parts=3)
    assert [part.num_train_steps for part in parts] == [3, 4, 3]
    pools = [np.concatenate(open_corpus(part.source).pools).tolist() for part in parts]
    assert sorted(np.concatenate(pools).tolist()) == list(range(1, 12))
    assert max(pools[0]) < min(pools[1]) <= max(pools[1]) < min(pools[2])
    Recipe(name="r", student=tiny(16), stages=parts)
    with pytest.raises(UserError, match="at least 1"):
        in_order(stage, Scores(name="summary/surprisal"), parts=0)


def test_the_anchor_first_and_the_pool_as_its_baseline(shards):
    stage = Stage("teach", None, mixture(shards), IMITATE, num_tokens=1000)
    stages = anchor_first(stage, "y", share=0.3, gates=(worst_token,), memory={"refill": acceptance()})
    assert [one.num_tokens for one in stages] == [300, 700]
    assert stages[0].source.weights == {"y": 1}
    assert stages[0].objective.terms["imitate"].gates == ()
    assert [gate.name for gate in stages[1].objective.terms["imitate"].bound_gates] == ["worst_token"]
    assert set(stages[1].objective.memory) == {"refill"}
    recipe = Recipe(name="r", student=tiny(16), stages=stages)
    baseline = pooled(recipe)
    assert baseline.budget == recipe.budget
    (only,) = baseline.stages
    assert (only.source.weights, only.source.teachers) == (None, None)
    assert only.objective.terms["imitate"].gates == ()
    assert dict(only.objective.memory) == {}


def bigram() -> Student:
    size = TOKENIZER.vocab_size

    def init(key):
        one, two = jax.random.split(key)
        return {"embed": jax.random.normal(one, (size, 8)), "unembed": jax.random.normal(two, (8, size))}

    axes = {"embed": ("vocab", "embed"), "unembed": ("embed", "vocab")}
    return Student(init, lambda p, batch: p["embed"][batch["tokens"]], lambda p: p["unembed"], axes, size)


def test_distillation_from_a_stored_top_k(shards, tmp_path):
    gate = use(has_teacher_topk)
    terms = {"kd": Term(forward_kl, gates=(gate,)), "skew": Term(skew_kl, gates=(gate,)), "nll": Term(cross_entropy)}
    source = mixture(shards, fields={"teacher_topk": Scores(name="topk", context="topk-2")})
    recipe = Recipe(name="kd", student=bigram, stages=(Stage("kd", 2, source, Objective(terms)),), log_every=1)
    outcome = run(recipe, tmp_path / "w", devices=jax.devices()[:1], quiet=True)
    assert outcome.position.train_step == 2
    for line in read_metrics(tmp_path / "w" / "metrics.jsonl"):
        assert line["metrics"]["optimizer/skipped"] == 0
        assert line["metrics"]["gate/kd/has_teacher_topk"] == 1
        assert np.isfinite(line["metrics"]["loss/kd"])
        assert line["metrics"]["loss/kd"] != line["metrics"]["loss/nll"]
    bare = dataclasses.replace(recipe, stages=(Stage("kd", 2, mixture(shards), Objective(terms)),))
    with pytest.raises(UserError, match="--store-topk 16"):
        build(bare, jax.devices()[:1])
    learned = dataclasses.replace(source, fields={}, tags=Tags())
    tagged = dataclasses.replace(recipe, stages=(Stage("t", 2, learned, IMITATE),))
    with pytest.raises(UserError, match=f"vocab_size to at least {TOKENIZER.vocab_size + 2}"):
        build(tagged, jax.devices()[:1])
