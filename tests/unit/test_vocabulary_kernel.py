"""The TPU kernel, interpreted on a CPU, gives what XLA gives; a kernel that does not is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mixdistill.errors import UserError
from mixdistill.kernels.vocabulary_tpu import LANES, block_columns
from mixdistill.signals import vocabulary_kernel
from mixdistill.signals.vocabulary import vocabulary_pass
from mixdistill.signals.vocabulary_tiles import Spec, Split, Tiles

CLOSE = ("logit", "lse", "entropy", "confidence", "tail_mass", "max_logit")


def arrays(tokens, embed, vocab, m, limit=None):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(tokens, embed)), jnp.float32)
    unembed = jnp.asarray(rng.normal(size=(embed, vocab)) * 2 / embed**0.5, jnp.float32)
    return hidden, unembed, jnp.asarray(rng.integers(0, limit or vocab, (tokens, m)), jnp.int32)


@pytest.fixture
def trusted(monkeypatch):
    """Without the check at the start, which runs the same code once more."""
    monkeypatch.setattr("mixdistill.signals.vocabulary.check_parity", lambda *given: None)


def assert_same(stats, expected):
    for name in CLOSE:
        np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(stats.rank, expected.rank)
    np.testing.assert_array_equal(stats.top1, expected.top1)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("sizes", "knobs"),
    [
        ((37, 16, 2503, 3), {}),  # two tiles, the last of them ragged
        ((37, 16, 2503, 1, 2400), {"layout": "vd", "soft_cap": 5.0, "temperature": 0.7, "num_valid_vocab": 2400}),
        ((20, 16, 300, 1), {"top_k": 290, "max_rank": 400}),  # more of them than the kernel's candidates: again by XLA
        ((20, 16, 100, 1), {"top_k": 0}),
    ],
    ids=["ragged", "tied-capped-padded", "nearly-all-on-top", "no-top"],
)
def test_statistics_are_those_of_xla(sizes, knobs):
    hidden, unembed, ids = arrays(*sizes)
    unembed = unembed.T if knobs.get("layout") == "vd" else unembed
    valid = jnp.arange(len(hidden)) % 4 != 1
    run = functools.partial(vocabulary_pass, valid=valid, backward="tiles", **knobs)
    stats = jax.jit(functools.partial(run, implementation="pallas"))(hidden, unembed, ids)
    assert_same(stats, run(hidden, unembed, ids))


@pytest.mark.usefixtures("trusted")
def test_four_of_the_largest_on_one_lane_are_found():
    hidden, unembed, ids = arrays(8, 16, 2000, 1)
    lane = jnp.arange(2000) % LANES == 5  # sixteen columns that the kernel keeps together
    unembed = jnp.where(lane, unembed * 10, unembed)
    run = functools.partial(vocabulary_pass, top_k=10, backward="tiles")
    assert_same(
        jax.jit(functools.partial(run, implementation="pallas"))(hidden, unembed, ids), run(hidden, unembed, ids)
    )


@pytest.mark.usefixtures("trusted")
def test_gradients_and_a_split_vocabulary():
    hidden, unembed, ids = arrays(16, 16, 512, 2)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def loss(hidden, unembed, **knobs):
        stats = vocabulary_pass(hidden, unembed, ids, backward="tiles", top_k=4, num_valid_vocab=500, **knobs)
        return jnp.where(stats.rank < 40, stats.lse - stats.logit[:, 0], 0.0).sum(), stats

    def gradients(**knobs):
        return jax.jit(jax.grad(functools.partial(loss, **knobs), (0, 1), has_aux=True))(hidden, unembed)

    split = {"mesh": mesh, "token_axes": ("data",), "embed_axes": ("data",), "vocab_axis": "model"}
    (grads, stats), (expected_grads, expected) = gradients(implementation="pallas", **split), gradients()
    assert_same(stats, expected)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def spec() -> Spec:
    return Spec(2, 100, None, 1.0, "dv", None, Tiles(16, None, 16, 64), "tiles", "pallas", "cpu", Split())


def test_parity_is_checked_once_at_the_start_even_while_tracing(monkeypatch):
    calls, compare = [], vocabulary_kernel.compare
    monkeypatch.setattr(vocabulary_kernel, "compare", lambda *both: calls.append(both))
    vocabulary_kernel.check_parity.cache_clear()
    for _ in range(2):
        jax.eval_shape(lambda x: (vocabulary_kernel.check_parity(spec(), 8), x)[1], jnp.ones(3))
    vocabulary_kernel.check_parity.cache_clear()
    ((kernel, xla),) = calls
    compare(kernel, xla)
    lse, logit, rest = kernel
    with pytest.raises(UserError, match=r"the TPU kernel and XLA disagree on this machine: lse by 0\.5"):
        compare((lse + 0.5, logit, rest), xla)
    with pytest.raises(UserError, match="logit by nan"):
        compare((lse, logit.at[0].set(jnp.nan), rest), xla)


def test_tiles_of_the_unembedding_fit():
    assert block_columns(1024, 151936, 2) == 2048
    assert block_columns(8192, 151936, 2) == 1024
    assert block_columns(8192, 151936, 4) == 512
    assert block_columns(64, 300, 4) == 384


def test_the_kernel_lowers_for_tpu():
    given = (
        jax.ShapeDtypeStruct((512, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((256, 5000), jnp.bfloat16),
        jax.ShapeDtypeStruct((512, 1), jnp.int32),
    )
    run = functools.partial(vocabulary_pass, implementation="pallas", platform="tpu")
    exported = export.export(jax.jit(run), platforms=["tpu"])(*given)
    assert "tpu_custom_call" in exported.mlir_module()
