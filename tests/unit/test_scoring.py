"""The ledger against a student run one trace at a time; resuming, damage, contexts, devices."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.data import ledger
from mixdistill.data.sequences import Scored, batches
from mixdistill.errors import UserError
from mixdistill.generation import contexts, scoring
from mixdistill.signals.reference import dense_stats
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.students.student import batch_of
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace

WORDS = [f"w{i}" for i in range(20)]
TOKENIZER = word_level(WORDS)
STUDENT = make_student(tiny(TOKENIZER.vocab_size))
PARAMS = jax.jit(STUDENT.init)(jax.random.key(0))


def make_traces(count: int, seed: int = 0) -> list[Trace]:
    random = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(random.choice(WORDS, n)) + " "

    return [
        Trace(
            f"p{i}", words(3).strip(), tuple(Step(words(int(random.integers(1, 6)))) for _ in range(3)), "", "ab"[i % 2]
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return prepare_traces(make_traces(7), tmp_path_factory.mktemp("shards") / "s", tokenizer=TOKENIZER)


def one_device_score(shards, sidecar, **options):
    options = {"fingerprint": "f" * 64, "name": "tiny", "devices": jax.devices()[:1], **options}
    return scoring.score(shards, STUDENT, PARAMS, sidecar, **options)


@jax.jit
def all_stats(tokens):
    hidden = STUDENT.hidden(PARAMS, batch_of(tokens[None, :-1]))
    return dense_stats(hidden, STUDENT.unembed(PARAMS), tokens[None, 1:, None], top_k=20)


def slow(tokens, start) -> dict[str, np.ndarray]:
    """Every field for the tokens from `start` on: unpacked, dense."""
    stats = jax.device_get(all_stats(np.asarray(tokens)))
    values = {
        "label_logprob": stats.logit[0, :, 0] - stats.lse[0],
        "rank": stats.rank[0],
        "entropy": stats.entropy[0],
        "confidence": -stats.confidence[0],
        "top1_logprob": stats.max_logit[0] - stats.lse[0],
    }
    return {name: value[start - 1 :] for name, value in values.items()}


def test_every_field_is_that_of_the_trace_alone(shards, tmp_path):
    done = one_device_score(shards, tmp_path / "ledger")
    assert (done.scored_traces, done.skipped_traces) == (7, 0)
    opened = ledger.open_ledger(tmp_path / "ledger", shards)
    assert opened.missing == 0
    for i in range(len(shards)):
        expected, found = slow(shards[i].tokens, shards[i].num_prompt), opened.fields(i)
        assert set(found) == set(expected)
        np.testing.assert_array_equal(found["rank"], expected["rank"])
        for name in set(found) - {"rank"}:
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3, err_msg=name)
    assert done.scored_tokens == sum(len(opened.fields(i)["rank"]) for i in range(len(shards)))


def test_a_trace_is_summed_up(shards, tmp_path):
    one_device_score(shards, tmp_path)
    opened = ledger.open_ledger(tmp_path, shards)
    summary, found = opened.summary(), opened.fields(4)
    assert summary["length"][4] == len(found["rank"])
    np.testing.assert_allclose(summary["surprisal"][4], -found["label_logprob"].mean(), rtol=1e-3)
    ratio = found["rank"].sum() / -found["label_logprob"].sum()
    np.testing.assert_allclose(summary["rank_surprisal_ratio"][4], ratio, rtol=1e-3)
    assert "ifd" not in summary
    opened.blocks[0].path.unlink()
    assert ledger.Ledger(opened.folder, shards, "full", opened.about).summary() == {}


def test_several_devices_give_the_same(shards, tmp_path):
    one_device_score(shards, tmp_path / "one")
    one_device_score(shards, tmp_path / "all", devices=jax.devices()[:2], batch_tokens=512)
    one, two = (ledger.open_ledger(tmp_path / name, shards).fields(3) for name in ("one", "all"))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-3)


def test_scoring_again_skips_and_goes_on_where_it_stopped(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "BLOCK_TRACES", 2)
    seen = []
    done = one_device_score(shards, tmp_path, progress=lambda *p: seen.append(p[:2]))
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert one_device_score(shards, tmp_path)._asdict() == {
        "scored_traces": 0,
        "skipped_traces": 7,
        "scored_tokens": 0,
        "columns": 0,
    }
    before = ledger.open_ledger(tmp_path, shards).fields(3)
    block = ledger.open_ledger(tmp_path, shards).blocks[1]
    block.path.unlink()
    opened = ledger.open_ledger(tmp_path, shards)
    assert opened.missing == 2
    assert 3 not in opened
    assert 4 in opened
    with pytest.raises(UserError, match="not scored"):
        opened.fields(3)
    again = one_device_score(shards, tmp_path)
    assert (again.scored_traces, again.skipped_traces) == (2, 5)
    assert again.scored_tokens < done.scored_tokens
    after = ledger.open_ledger(tmp_path, shards).fields(3)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_scores_follow_the_bytes(shards, tmp_path):
    one_device_score(shards, tmp_path / "ledger")
    same = prepare_traces(make_traces(7), tmp_path / "elsewhere", tokenizer=TOKENIZER)
    assert ledger.open_ledger(tmp_path / "ledger", same).missing == 0
    other = prepare_traces(make_traces(7, seed=1), tmp_path / "other", tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"holds no 'full' scores .*mixdistill score"):
        ledger.open_ledger(tmp_path / "ledger", other)


def test_students_are_kept_apart(shards, tmp_path):
    with pytest.raises(UserError, match=r"no student is .*known: none"):
        ledger.open_ledger(tmp_path, shards)
    one_device_score(shards, tmp_path)
    one_device_score(shards, tmp_path, fingerprint="e" * 64, name="second")
    with pytest.raises(UserError, match="several students are"):
        ledger.open_ledger(tmp_path, shards)
    assert ledger.open_ledger(tmp_path, shards, student="e" * 12).about["name"] == "second"


def test_damage_is_told(shards, tmp_path):
    one_device_score(shards, tmp_path)
    (block,) = ledger.open_ledger(tmp_path, shards).blocks
    block.path.write_bytes(block.path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        ledger.open_ledger(tmp_path, shards).fields(0)
    about = next(tmp_path.glob("*/about.json"))
    about.write_text(json.dumps({**json.loads(about.read_text()), "schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        ledger.open_ledger(tmp_path, shards)


def test_vocabulary_must_be_large_enough(shards, tmp_path):
    with pytest.raises(UserError, match="has a vocabulary of 5"):
        scoring.score(shards, STUDENT._replace(vocab_size=5), PARAMS, tmp_path, fingerprint="f")
    assert not list(tmp_path.iterdir())


def test_second_contexts(shards, tmp_path):
    start = [TOKENIZER.eos_id]
    wanted = [
        contexts.alone(start),
        contexts.local(1),
        contexts.prompt(start, TOKENIZER.encode),
        contexts.topk(3),
    ]
    one_device_score(shards, tmp_path, contexts=wanted)

    def found(context: str, trace: int) -> dict[str, np.ndarray]:
        return ledger.open_ledger(tmp_path, shards, context=context).fields(trace)

    encoded = shards[2]
    completion = encoded.tokens[encoded.num_prompt :]
    expected = slow([*start, *completion], 1)["label_logprob"]
    np.testing.assert_allclose(found("alone", 2)["label_logprob"], expected, rtol=1e-3, atol=1e-3)

    prompt = TOKENIZER.encode(encoded.trace.prompt)
    expected = slow([*start, *prompt], 1)["label_logprob"]
    np.testing.assert_allclose(found("prompt", 2)["label_logprob"], expected, rtol=1e-3, atol=1e-3)

    parts, ids = [], encoded.step_id
    for step in (1, 2, 3):
        piece = encoded.tokens[(ids == step) | (ids == step - 1)]
        parts.append(slow(piece, int((ids == step - 1).sum()))["label_logprob"])
    np.testing.assert_allclose(found("local-1", 2)["label_logprob"], np.concatenate(parts), rtol=1e-3, atol=1e-3)

    top = found("topk-3", 2)
    assert top["topk_id"].shape == top["topk_logprob"].shape == (len(completion), 3)
    np.testing.assert_allclose(
        top["topk_logprob"][:, 0], slow(encoded.tokens, encoded.num_prompt)["top1_logprob"], rtol=1e-3, atol=1e-3
    )
    assert (np.diff(top["topk_logprob"]) <= 0).all()
    with pytest.raises(UserError, match="at least 1"):
        contexts.local(0)


def test_reverse_context_asks_for_the_prompt(shards):
    encode = word_level([*WORDS, "Which", "instruction", "does", "this", "text", "answer?", "Instruction:"]).encode
    (sequence,) = contexts.reverse([1], encode).sequences(shards[0])
    assert sequence.tokens[sequence.start :].tolist() == encode(shards[0].trace.prompt)
    assert sequence.tokens[0] == 1
    assert set(encode(shards[0].trace.text)) <= set(sequence.tokens[: sequence.start].tolist())


def test_fingerprint_is_of_values_and_of_what_is_done_with_them():
    first = scoring.fingerprint_of(STUDENT, PARAMS)
    assert first == scoring.fingerprint_of(STUDENT, jax.tree.map(lambda x: x + 0, PARAMS))
    assert first != scoring.fingerprint_of(STUDENT, jax.tree.map(lambda x: x + 1e-3, PARAMS))
    assert first != scoring.fingerprint_of(STUDENT._replace(soft_cap=3.0), PARAMS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 900), max_size=30), st.sampled_from([256, 512, 1024]), st.integers(1, 3))
def test_batches_hold_every_token_once(lengths, num_tokens, multiple):
    starts = np.cumsum([0, *lengths])
    sequences = [
        Scored(np.arange(start, start + n, dtype=np.int32), 1 + n // 3)
        for start, n in zip(starts, lengths, strict=False)
    ]
    targets, shapes = [], set()
    for batch, spots in batches(sequences, num_tokens, multiple):
        rows, width = batch["tokens"].shape
        shapes.add((rows, width))
        assert rows % multiple == 0
        targets += batch["target"][batch["valid"]].tolist()
        for number, row, offset in spots:
            sequence = sequences[number]
            span = slice(offset, offset + sequence.columns)
            assert batch["tokens"][row, span].tolist() == sequence.tokens[:-1].tolist()
            assert batch["target"][row, span].tolist() == sequence.tokens[1:].tolist()
            assert batch["position"][row, span].tolist() == list(range(sequence.columns))
            assert len(set(batch["segment_id"][row, span].tolist())) == 1
            assert batch["segment_id"][row].tolist().count(batch["segment_id"][row, offset]) == sequence.columns
    expected = [t for s in sequences for t in s.tokens[s.start :].tolist()]
    assert sorted(targets) == expected
    assert len(shapes) <= 3  # 256, 512, 1024 columns
