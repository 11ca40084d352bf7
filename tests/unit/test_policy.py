"""Sampling policies by hand, and sampling that depends on (seed, train_step, row) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mixdistill.errors import UserError
from mixdistill.generation.policy import Policy, draw, log_probabilities
from mixdistill.generation.sampler import LowConfidence, _decode, complete, sample
from mixdistill.mesh import make_mesh
from mixdistill.students import families
from mixdistill.students.decoder import make_student

PROBABILITIES = np.array([0.1, 0.4, 0.2, 0.25, 0.05])
RAW = jnp.log(PROBABILITIES)[None] + 3.0  # logits are free up to a constant
VOCAB, EOS = 23, 3


def kept(policy: Policy) -> np.ndarray:
    return np.exp(np.asarray(log_probabilities(RAW, policy)[0], np.float64))


def renormalised(*ids: int) -> np.ndarray:
    chosen = np.where(np.isin(np.arange(5), ids), PROBABILITIES, 0)
    return chosen / chosen.sum()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), PROBABILITIES),
        (Policy(temperature=0.0), PROBABILITIES),
        (Policy(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Policy(top_k=2), renormalised(1, 3)),
        (Policy(top_k=9), PROBABILITIES),
        (Policy(top_p=0.6), renormalised(1, 3)),  # 0.4 + 0.25 reach it
        (Policy(top_p=0.7), renormalised(1, 3, 2)),
        (Policy(top_p=0.01), renormalised(1)),
        (Policy(min_p=0.5), renormalised(1, 2, 3)),  # at least 0.2
        (Policy(top_k=3, min_p=0.6), renormalised(1, 3)),
    ],
    ids=str,
)
def test_what_is_kept(policy, expected):
    np.testing.assert_allclose(kept(policy), expected, atol=1e-6)


def test_frequencies_are_the_probabilities():
    policy = Policy(top_k=3)
    keys = jax.random.split(jax.random.key(0), 4000)
    log_probs = jnp.broadcast_to(log_probabilities(RAW, policy), (4000, 5))
    counts = np.bincount(np.asarray(draw(log_probs, policy, keys)), minlength=5) / 4000
    np.testing.assert_allclose(counts, renormalised(1, 2, 3), atol=4 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 1.5}], ids=str)
def test_bad_policies(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Policy(**bad)


@pytest.fixture(scope="module")
def talker():
    student = make_student(families.tiny(VOCAB))
    return student, student.init(jax.random.key(5))


def test_a_sample_depends_on_seed_train_step_and_row_alone(talker):
    student, params = talker
    prompts = [[1, 2, 3], [4], [5, 6], [4], [7, 8]]
    draws = {"max_new": 8, "eos_id": -1, "policy": Policy(temperature=1.5)}

    def texts(some, **settings):
        return [tuple(result.tokens.tolist()) for result in complete(student, params, some, **draws, **settings)]

    together = texts(prompts, rows=8)
    assert together == texts(prompts, rows=2)
    assert together[:3] == texts(prompts[:3], rows=4)
    assert together[1] != together[3]  # the same prompt in another row
    assert together != texts(prompts, rows=8, seed=1)
    assert together != texts(prompts, rows=8, train_step=1)


def test_log_probabilities_are_those_of_the_policy(talker):
    student, params = talker
    policy = Policy(temperature=2.0, top_k=5)
    result = complete(student, params, [[1, 2, 3]], max_new=6, eos_id=-1, policy=policy)[0]
    row = jnp.asarray([[1, 2, 3, *result.tokens]])
    batch = {"tokens": row, "segment_id": jnp.ones_like(row), "position": jnp.arange(row.shape[1])[None]}
    raw = student.hidden(params, batch)[0, 2:-1] @ student.unembed(params)
    expected = np.take_along_axis(np.asarray(log_probabilities(raw, policy)), result.tokens[:, None], 1)[:, 0]
    np.testing.assert_allclose(result.logprobs, expected, atol=2e-5)


def test_eight_devices_say_what_one_says(talker):
    student, params = talker
    prompts = np.random.default_rng(0).integers(0, VOCAB, (8, 5))
    lengths = np.array([5, 2, 3, 1, 4, 5, 5, 2])
    draws = {"max_new": 6, "eos_id": EOS, "policy": Policy(temperature=1.3)}
    one = sample(student, params, prompts, lengths, **draws)
    mesh = make_mesh({"fsdp": 8})
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    eight = sample(student, everywhere, jax.device_put(prompts, rows), jax.device_put(lengths, rows), **draws)
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    np.testing.assert_allclose(one.logprobs, eight.logprobs, atol=1e-5)


def test_rows_stop_when_a_full_window_is_unsure(talker):
    student, params = talker
    draws = {"max_new": 12, "eos_id": -1, "policy": Policy(temperature=1.0)}
    prompts = [[1, 2], [3], [9, 9], [4, 4]]
    free = complete(student, params, prompts, stop=LowConfidence(3, -np.inf, top_k=4), **draws)
    lowest = [min(np.convolve(row.confidence, np.ones(3) / 3, "valid")) for row in free]
    threshold = float(np.median(lowest))
    stopped = complete(student, params, prompts, stop=LowConfidence(3, threshold, top_k=4), **draws)
    for whole, cut in zip(free, stopped, strict=True):
        means = np.convolve(whole.confidence, np.ones(3) / 3, "valid")
        first = int(np.argmax(means < threshold)) + 3 if (means < threshold).any() else 12
        assert len(cut.tokens) == first
        np.testing.assert_array_equal(cut.tokens, whole.tokens[:first])
    assert len({len(cut.tokens) for cut in stopped}) > 1


def test_rows_may_have_less_than_the_others(talker):
    student, params = talker
    prompts, most = np.ones((4, 3), np.int32), np.array([2, 5, 1, 9])
    draws = {"max_new": 6, "eos_id": -1, "policy": Policy(temperature=1.0)}
    free = sample(student, params, prompts, np.full(4, 3), **draws)
    short = sample(student, params, prompts, np.full(4, 3), most=most, **draws)
    assert short.lengths.tolist() == [2, 5, 1, 6]
    for row, count in enumerate(short.lengths):
        np.testing.assert_array_equal(short.tokens[row, :count], free.tokens[row, :count])


def test_the_loop_never_leaves_the_device(talker):
    """What could wait for the host between two tokens would be a call in the program."""
    student, params = talker
    model = student._replace(init=None, axes=None)
    rows = jnp.zeros(4, jnp.int32)
    place = (jnp.ones((4, 8), jnp.int32), rows + 8, rows, rows + 6, jax.random.key(0), EOS, 0, 0.0)
    settings = {"max_new": 6, "policy": Policy(top_p=0.9), "window": 3, "top_k": 4}
    program = _decode.lower(model, params, *place, **settings).as_text()
    assert "stablehlo.while" in program
    for word in ("callback", "infeed", "outfeed", "send", "recv"):
        assert word not in program, word
