"""Greedy decoding equals the argmax of plain forward passes, whatever stands beside a prompt in the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.generation import sampler
from mixdistill.generation.sampler import complete, greedy
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.students.student import logits

VOCAB, EOS, MAX_NEW = 23, 3, 10
VARIANTS = {
    "tied-gqa": dataclasses.replace(families.tiny(VOCAB), tied=True, qk_norm=True),
    "walk": families.walk(VOCAB),
}
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def setting(config):
    """A student that says several things: large embeddings make random weights opinionated."""
    student = make_student(config)
    params = student.init(jax.random.key(5))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (5, 1, 9, 3, 7, 2)]
    return student, params, prompts


def by_hand(student, params, prompt):
    """One forward pass over all tokens so far for every new token."""
    tokens, logprobs = list(prompt), []
    hidden = jax.jit(student.hidden)
    room = 32
    while len(logprobs) < MAX_NEW:
        row = np.zeros((1, room), np.int32)
        row[0, : len(tokens)] = tokens
        used = (np.arange(room) < len(tokens)).astype(np.int32)[None]
        batch = {"tokens": row, "segment_id": used, "position": np.arange(room, dtype=np.int32)[None] * used}
        scores = jax.nn.log_softmax(logits(student, params, hidden(params, batch)[0, len(tokens) - 1]))
        tokens.append(int(np.argmax(scores)))
        logprobs.append(float(np.max(scores)))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :], logprobs


@each_variant
def test_equals_the_argmax_of_plain_passes(config):
    student, params, prompts = setting(config)
    results = complete(student, params, prompts, max_new=MAX_NEW, eos_id=EOS, rows=4)
    assert len(results) == len(prompts)
    for prompt, result in zip(prompts, results, strict=True):
        tokens, logprobs = by_hand(student, params, prompt)
        assert result.tokens.tolist() == tokens
        assert result.ended == (tokens[-1] == EOS)
        np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-5)
    assert len({tuple(result.tokens) for result in results}) > 1


@each_variant
def test_a_student_without_cache_says_the_same(config):
    student, params, prompts = setting(config)
    cached = complete(student, params, prompts, max_new=MAX_NEW, eos_id=EOS)
    plain = complete(student._replace(cache=None), params, prompts, max_new=MAX_NEW, eos_id=EOS)
    for one, other in zip(cached, plain, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


def test_a_row_stops_at_its_end_token():
    student, params, prompts = setting(VARIANTS["walk"])
    free = complete(student, params, prompts, max_new=MAX_NEW, eos_id=-1)
    end = int(free[0].tokens[2])  # make the third token of the first row the end token
    stop = [next((i + 1 for i, t in enumerate(row.tokens) if t == end), MAX_NEW) for row in free]
    rows = np.zeros((len(prompts), 9), np.int32)
    for row, prompt in enumerate(prompts):
        rows[row, : len(prompt)] = prompt
    lengths = np.array(list(map(len, prompts)))
    result = greedy(student, params, rows, lengths, max_new=MAX_NEW, eos_id=end, pad_id=VOCAB + 5)
    assert result.lengths.tolist() == stop
    for row, count in enumerate(stop):
        assert result.tokens[row, :count].tolist() == free[row].tokens[:count].tolist()
        assert (np.asarray(result.tokens[row, count:]) == VOCAB + 5).all()
        assert (np.asarray(result.logprobs[row, count:]) == 0).all()
    assert result.tokens.shape == (len(prompts), MAX_NEW)
    assert len(set(stop)) > 1


def test_five_hundred_prompts_compile_once():
    config = dataclasses.replace(families.tiny(VOCAB), embed=8, heads=2, kv_heads=1, head_dim=4, mlp=8, layers=1)
    student = make_student(config)
    params = student.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    before = sampler._decode._cache_size()
    for count in (500, 130):
        prompts = [rng.integers(0, VOCAB, rng.integers(1, 30)).tolist() for _ in range(count)]
        complete(make_student(config), params, prompts, max_new=4, eos_id=EOS, rows=128)
    assert sampler._decode._cache_size() == before + 1


def test_bfloat16_cache_and_activations():
    config = dataclasses.replace(VARIANTS["tied-gqa"], dtype="bfloat16", param_dtype="bfloat16")
    student = make_student(config)
    params = student.init(jax.random.key(0))
    result = greedy(student, params, jnp.ones((2, 4), jnp.int32), jnp.array([4, 2]), max_new=3, eos_id=EOS)
    assert np.isfinite(result.logprobs).all()
    assert (result.logprobs[:, 0] < 0).all()


def test_bad_prompts():
    student, params, _ = setting(VARIANTS["walk"])
    with pytest.raises(UserError, match="prompt 1 of 2 is empty"):
        complete(student, params, [[1], []], max_new=2, eos_id=EOS)
    with pytest.raises(UserError, match="at least 1"):
        complete(student, params, [[1]], max_new=0, eos_id=EOS)
    assert complete(student, params, [], max_new=2, eos_id=EOS) == []
