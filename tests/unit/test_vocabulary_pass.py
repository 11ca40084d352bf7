"""The vocabulary pass equals all logits at once, wherever its tiles end, and what is dead costs and changes nothing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import checkify

from mixdistill.gates.step_confidence import step_confidence
from mixdistill.signals import vocabulary_backward, vocabulary_forward
from mixdistill.signals.reference import dense_stats
from mixdistill.signals.steps import run_mean, step_run
from mixdistill.signals.vocabulary import NAMES, Tiles, vocabulary_pass
from mixdistill.signals.vocabulary_choice import BACKWARDS

STATISTICS = ("logit", "lse", "entropy", "confidence", "tail_mass", "max_logit")
EXACT = ("rank", "top1")
# Compiling is what costs here; the code is the same.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Problem(NamedTuple):
    hidden: jax.Array
    unembed: jax.Array
    ids: jax.Array
    weight: jax.Array  # of each token's loss; 0 at more than half of them
    teacher: jax.Array  # log-probabilities at ids[..., 1:]


def problem(lead=(3, 35), embed=24, vocab=203, m=1, dtype=jnp.float32, layout="dv", limit=None, seed=0) -> Problem:
    """Neither tokens nor columns are a multiple of any tile. Every third target is the most likely token."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*lead, embed)), dtype)
    unembed = jnp.asarray(rng.normal(size=(embed, vocab)) * 2 / embed**0.5, dtype)
    ids = rng.permuted(np.broadcast_to(np.arange(limit or vocab), (*lead, limit or vocab)), axis=-1)[..., :m]
    z = np.asarray(hidden, np.float32) @ np.asarray(unembed, np.float32)
    ids[..., 0] = np.where(rng.random(lead) < 1 / 3, z[..., :limit].argmax(-1), ids[..., 0])
    weight = jnp.asarray(rng.random(lead) * (rng.random(lead) < 0.4), jnp.float32)
    teacher = jnp.log(jnp.asarray(rng.dirichlet(np.ones(m), lead)[..., 1:], jnp.float32))
    return Problem(hidden, unembed if layout == "dv" else unembed.T, jnp.asarray(ids, jnp.int32), weight, teacher)


def loss_of(stats, p: Problem):
    """NLL, KL to the teacher's top ids and the rest, and a little of the squared log-sum-exp, times three."""
    nll = stats.lse - stats.logit[..., 0]
    student = stats.logit[..., 1:] - stats.lse[..., None]
    kl = (jnp.exp(p.teacher) * (p.teacher - student)).sum(-1)
    if student.shape[-1]:
        rest, student_rest = (jnp.maximum(1 - jnp.exp(x).sum(-1), 1e-6) for x in (p.teacher, student))
        kl = kl + rest * (jnp.log(rest) - jnp.log(student_rest))
    return 3 * (p.weight * (nll + 0.5 * kl + 1e-3 * stats.lse**2)).sum()


def value_and_gradients(run, p: Problem, **knobs):
    """(statistics, (gradient of hidden, of unembed))."""

    def loss(hidden, unembed):
        stats = run(hidden, unembed, p.ids, **knobs)
        return loss_of(stats, p), stats

    (_, stats), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(p.hidden, p.unembed)
    return stats, gradients


def off(a, b) -> float:
    """Largest difference, as a share of the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)


def assert_same(stats, expected, tolerance=1e-5):
    for name in STATISTICS:
        assert off(getattr(stats, name), getattr(expected, name)) < tolerance, name
    for name in EXACT:
        np.testing.assert_array_equal(getattr(stats, name), getattr(expected, name), name)


CASES = {
    "target": ({}, {"top_k": 1}),
    "teacher": ({"m": 21}, {"top_k": 20}),
    "tied": ({"layout": "vd", "m": 21}, {"layout": "vd", "top_k": 5}),
    "capped": ({"limit": 190}, {"soft_cap": 7.0, "temperature": 0.7, "num_valid_vocab": 190}),
    "bfloat16": ({"dtype": jnp.bfloat16, "m": 21}, {"max_rank": 50}),
}
TILES = {
    "tiles": Tiles(16, None, 16, 64),
    "buckets": Tiles(16, 64, 16, 64),
    "dense": Tiles(16, None, 48, 256),
}


@pytest.mark.parametrize(
    ("case", "backward"),
    [(case, "tiles") for case in CASES]
    + [(case, "dense") for case in CASES]
    + [("teacher", "buckets"), ("capped", "buckets")],
)
def test_statistics_and_gradients_are_those_of_dense_float32(case, backward):
    sizes, knobs = CASES[case]
    p = problem(**sizes)
    stats, gradients = value_and_gradients(vocabulary_pass, p, backward=backward, tiles=TILES[backward], **knobs)
    exact = p._replace(hidden=p.hidden.astype(jnp.float32), unembed=p.unembed.astype(jnp.float32))
    expected, expected_gradients = value_and_gradients(dense_stats, exact, **knobs)
    assert_same(stats, expected)
    assert 0 < stats.top1.sum() < stats.top1.size
    for gradient, reference, given in zip(gradients, expected_gradients, p[:2], strict=True):
        assert gradient.dtype == given.dtype
        assert gradient.shape == given.shape
        assert off(gradient, reference) < (2e-6 if given.dtype == jnp.float32 else 1e-2)
    assert not np.asarray(gradients[0])[np.asarray(p.weight) == 0].any()


def test_the_largest_of_many_columns_and_a_rank_that_saturates():
    p = problem(lead=(20,), vocab=2711)
    expected = dense_stats(*p[:3], top_k=20, max_rank=30)
    for tiles in (Tiles(8, None, 8, 64), Tiles(8, 700, 8, 64)):
        run = functools.partial(vocabulary_pass, tiles=tiles, backward="tiles", top_k=20, max_rank=30)
        stats = quick(run)(*p[:3])
        assert_same(stats, expected)
        assert stats.rank.max() == 30


def numpy_loss(hidden, unembed, p: Problem) -> float:
    """The loss for m = 1, in float64."""
    z = hidden @ unembed
    peak = z.max(-1)
    lse = peak + np.log(np.exp(z - peak[..., None]).sum(-1))
    target = np.take_along_axis(z, np.asarray(p.ids), -1)[..., 0]
    return 3 * (np.asarray(p.weight, np.float64) * (lse - target + 1e-3 * lse**2)).sum()


def test_gradients_are_finite_differences():
    p = problem(lead=(19,))
    _, gradients = value_and_gradients(vocabulary_pass, p, backward="tiles", tiles=Tiles(8, None, 8, 64))
    place = [np.asarray(x, np.float64) for x in p[:2]]
    for i, gradient in enumerate(gradients):
        length = np.linalg.norm(np.asarray(gradient, np.float64))

        def along(step, i=i, way=np.asarray(gradient) / length):
            return numpy_loss(*(x + step * way if i == j else x for j, x in enumerate(place)), p)

        np.testing.assert_allclose((along(1e-4) - along(-1e-4)) / 2e-4, length, rtol=2e-6)


def test_large_logits_stay_finite():
    p = problem(lead=(40,))
    p = p._replace(hidden=200 * p.hidden)
    stats, gradients = value_and_gradients(vocabulary_pass, p, backward="tiles", tiles=Tiles(16, 64, 16, 64))
    assert float(stats.max_logit.max()) > 1000
    assert all(np.isfinite(x).all() for x in (*stats, *gradients))
    expected = dense_stats(*p[:3])
    assert off(stats.lse, expected.lse) < 1e-5
    np.testing.assert_array_equal(stats.rank, jnp.minimum(expected.rank, 100))


def gated_gradients(p: Problem, backward: str):
    """Compiled: the NLL of the tokens that `keep` selects, to (hidden, unembed)."""

    def loss(hidden, unembed, keep, valid):
        stats = vocabulary_pass(hidden, unembed, p.ids, valid=valid, backward=backward, tiles=TILES[backward])
        return jnp.where(keep, stats.lse - stats.logit[..., 0], 0.0).sum()

    return quick(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize("backward", BACKWARDS)
def test_dead_tokens_give_exactly_nothing_and_repetition_the_same_bits(backward):
    p = problem()
    run = gated_gradients(p, backward)
    keep, everyone = p.weight > 0, jnp.ones(p.weight.shape, bool)
    assert not any(np.asarray(gradient).any() for gradient in run(p.hidden, p.unembed, ~everyone, everyone))

    clean = run(p.hidden, p.unembed, keep, everyone)
    assert all(np.asarray(gradient).any() for gradient in clean)
    broken = jnp.where(keep[..., None], p.hidden, jnp.nan)
    for hidden, valid in ((broken, everyone), (broken, keep), (p.hidden, everyone)):
        for gradient, expected in zip(run(hidden, p.unembed, keep, valid), clean, strict=True):
            np.testing.assert_array_equal(gradient, expected)


def test_compiled_again_it_gives_the_same_bits():
    p = problem()
    one, other = (value_and_gradients(vocabulary_pass, p, backward="tiles", tiles=TILES["tiles"]) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("backward", ["tiles", "dense"])  # the forward of "buckets" is that of "tiles"
def test_tokens_masked_beforehand_have_the_statistics_of_nothing(backward):
    p = problem(lead=(50,))
    valid = jnp.arange(50) % 3 == 1
    stats = quick(functools.partial(vocabulary_pass, backward=backward, tiles=TILES[backward]))(*p[:3], valid=valid)
    expected = jax.tree.map(lambda x: x[valid], dense_stats(*p[:3], max_rank=100))
    assert_same(jax.tree.map(lambda x: x[valid], stats), expected)
    others = jax.tree.map(lambda x: x[~valid], stats)
    assert all(not np.asarray(getattr(others, name)).any() for name in STATISTICS)
    assert (others.rank == 1).all()


def test_only_tiles_of_live_tokens_are_visited(monkeypatch):
    visited = []

    def counted(room, name):
        fn = getattr(room, name)

        def wrapper(*args):
            jax.debug.callback(functools.partial(visited.append, name))
            return fn(*args)

        monkeypatch.setattr(room, name, wrapper)

    counted(vocabulary_forward, "fold")
    counted(vocabulary_backward, "_gradients")
    p = problem(lead=(100,))
    valid = jnp.arange(100) % 5 == 0
    keep = valid & (jnp.arange(100) < 30)
    tiles = Tiles(8, 64, 4, 32)

    def loss(hidden):
        stats = vocabulary_pass(hidden, p.unembed, p.ids, valid=valid, backward="tiles", tiles=tiles)
        return jnp.where(keep, stats.lse, 0.0).sum()

    jax.block_until_ready(quick(jax.grad(loss))(p.hidden))
    jax.effects_barrier()
    # 203 columns are 4 tiles of 64 and 7 of 32; 20 tokens are 3 tiles of 8, the 6 that are kept 2 tiles of 4.
    assert (visited.count("fold"), visited.count("_gradients")) == (4 * 3, 7 * 2)


def test_what_nobody_reads_is_not_computed():
    p = problem(lead=(40,), vocab=300)

    def compiled(*names):
        def read(hidden, unembed, ids):
            stats = vocabulary_pass(hidden, unembed, ids, backward="tiles", tiles=Tiles(16, 64, 16, 64))
            return [NAMES[name](stats) for name in names]

        program = jax.jit(read).lower(*p[:3]).compile()
        return "TopK" in program.as_text(), program.cost_analysis()["transcendentals"]

    nll, entropy, confidence = (compiled("label_logprob", *more) for more in ((), ("entropy",), ("confidence",)))
    assert (nll[0], entropy[0], confidence[0]) == (False, False, True)
    assert entropy[1] > 1.5 * nll[1]
    assert confidence[1] == nll[1]


def test_a_gate_on_reasoning_steps_is_that_of_all_logits():
    p = problem(lead=(4, 40))
    rng = np.random.default_rng(1)
    segment = jnp.asarray(np.sort(rng.integers(1, 4, (4, 40))))
    run = step_run(segment, jnp.asarray(np.sort(rng.integers(0, 4, (4, 40)))))
    valid = jnp.asarray(rng.random((4, 40)) < 0.8)

    def gated(forward, hidden, unembed):
        stats = forward(hidden, unembed, p.ids)
        gate = step_confidence(run_mean(-stats.confidence, valid, run), valid, run, quantile=0.4) & valid
        gate = lax.stop_gradient(gate * jnp.exp(-stats.entropy))
        return jnp.where(gate > 0, gate * (stats.lse - stats.logit[..., 0]), 0.0).sum() / gate.sum(), gate

    ours = functools.partial(vocabulary_pass, backward="tiles", tiles=Tiles(16, None, 16, 64), top_k=5)
    dense = functools.partial(dense_stats, top_k=5)
    results = [
        quick(jax.value_and_grad(functools.partial(gated, forward), (0, 1), has_aux=True))(*p[:2])
        for forward in (ours, dense)
    ]
    ((loss, gate), gradients), ((dense_loss, dense_gate), dense_gradients) = results
    assert 0.2 < (gate > 0).mean() < 0.8
    np.testing.assert_array_equal(gate > 0, dense_gate > 0)
    assert off(loss, dense_loss) < 1e-6
    assert all(off(a, b) < 2e-6 for a, b in zip(gradients, dense_gradients, strict=True))


def test_ids_out_of_range_are_an_error_under_checkify_and_harmless_otherwise():
    p = problem(lead=(10,))
    ids = p.ids.at[3, 0].set(203)
    valid = jnp.arange(10) != 3

    def run(ids, valid=None):
        return vocabulary_pass(p.hidden, p.unembed, ids, valid=valid, backward="tiles").logit

    checked = quick(checkify.checkify(run))
    checked(p.ids)[0].throw()
    checked(ids, valid)[0].throw()
    with pytest.raises(ValueError, match="ids are out of range; they are at least 0 and less than 203"):
        checked(ids)[0].throw()
    assert quick(run)(ids)[3, 0] == 0
    np.testing.assert_array_equal(run(np.asarray(ids)), run(ids))
