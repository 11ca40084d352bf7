"""The decoder: packed rows equal separate rows, padding is harmless, depth is scanned, bad sizes are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from mixdistill.errors import UserError
from mixdistill.students import families, layers
from mixdistill.students.config import RopeScaling, Window
from mixdistill.students.decoder import make_student
from mixdistill.students.student import batch_of, logits

VOCAB = 37
TINY = families.tiny(VOCAB)
VARIANTS = {
    "tiny": TINY,
    "walk": families.walk(VOCAB),
    "qwen-like": dataclasses.replace(TINY, qk_norm=True, tied=True, rope_base=1e6, soft_cap=20.0),
    "bias-mqa-conv": dataclasses.replace(TINY, qkv_bias=True, kv_heads=1, conv_width=4, mlp_kind="gelu"),
    "gemma-like": dataclasses.replace(
        TINY,
        qk_norm=True,
        tied=True,
        norms="sandwich",
        mlp_kind="geglu",
        embed_scaled=True,
        window=Window(5, (1,), 50.0),
    ),
}
LENGTH = 32
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def params_of(config, seed=0):
    return make_student(config).init(jax.random.key(seed))


def packed(pieces, length, padding_token=0):
    """One row that holds `pieces` one after the other, then padding."""
    row = {name: np.zeros((1, length), np.int32) for name in ("tokens", "segment_id", "position")}
    row["tokens"] += padding_token
    start = 0
    for number, piece in enumerate(pieces, 1):
        place = slice(start, start + len(piece))
        row["tokens"][0, place] = piece
        row["segment_id"][0, place] = number
        row["position"][0, place] = np.arange(len(piece))
        start += len(piece)
    return row


def pieces(rng, lengths=(7, 1, 12, 5)):
    return [rng.integers(0, VOCAB, n).astype(np.int32) for n in lengths]


@each_variant
def test_packed_rows_equal_separate_rows(config):
    student, params = make_student(config), params_of(config)
    hidden = jax.jit(student.hidden)
    parts = pieces(np.random.default_rng(0))
    together = hidden(params, packed(parts, LENGTH))[0]
    start = 0
    for part in parts:
        alone = hidden(params, packed([part], LENGTH))[0, : len(part)]
        np.testing.assert_allclose(together[start : start + len(part)], alone, atol=1e-5, rtol=0)
        start += len(part)


@each_variant
def test_padding_is_finite_and_reaches_nothing(config):
    student, params = make_student(config), params_of(config)
    parts = pieces(np.random.default_rng(1))
    used = sum(map(len, parts))

    @jax.jit
    def gradient(params, batch):
        def total(params):
            hidden = student.hidden(params, batch)
            return jnp.sum(hidden[:, :used] ** 2 * jnp.arange(hidden.shape[2])), hidden

        return jax.value_and_grad(total, has_aux=True)(params)

    (value, hidden), grads = gradient(params, packed(parts, LENGTH))
    (other, hidden2), grads2 = gradient(params, packed(parts, LENGTH, padding_token=9))
    np.testing.assert_array_equal(hidden[:, :used], hidden2[:, :used])
    assert not np.array_equal(hidden[:, used:], hidden2[:, used:])  # the padding did change
    assert value == other
    jax.tree.map(np.testing.assert_array_equal, grads, grads2)
    empty = gradient(params, packed([], LENGTH))  # a row that is all padding
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((hidden, grads, empty)))


@each_variant
def test_the_future_is_not_seen(config):
    student, params = make_student(config), params_of(config)
    hidden = jax.jit(student.hidden)
    row = packed(pieces(np.random.default_rng(2), (LENGTH,)), LENGTH)
    before = hidden(params, row)
    tokens = row["tokens"].copy()  # jax may still be reading the first one
    tokens[0, 10] = (tokens[0, 10] + 1) % VOCAB
    after = hidden(params, {**row, "tokens": tokens})
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert not np.allclose(before[:, 10:], after[:, 10:])


@each_variant
def test_tree_axes_and_count(config):
    student, params = make_student(config), params_of(config)
    assert type(params) is dict
    assert len(jax.tree.leaves(params)) < 20
    jax.tree.map(lambda leaf, axes: pytest.fail(f"{leaf.shape} {axes}") if leaf.ndim != len(axes) else None,
                 params, student.axes)  # fmt: skip
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.num_params
    deep = make_student(dataclasses.replace(config, layers=9))
    assert jax.tree.structure(jax.eval_shape(deep.init, jax.random.key(0))) == jax.tree.structure(params)


@each_variant
def test_the_cache_continues_where_it_stopped(config):
    """Chunks through the cache, rows right-aligned by padding, equal one pass over each row alone."""
    student, params = make_student(config), params_of(config)
    hidden, extend = jax.jit(student.hidden), jax.jit(student.cache.extend)
    rows = pieces(np.random.default_rng(3), (12, 7))
    tokens, positions = np.full((2, 12), 9, np.int32), np.full((2, 12), -1, np.int32)
    for row, part in enumerate(rows):
        tokens[row, 12 - len(part) :], positions[row, 12 - len(part) :] = part, np.arange(len(part))
    cache = student.cache.init_cache(2, 16)
    got = []
    for part in (slice(0, 8), slice(8, 10), slice(10, 12)):
        chunk, cache = extend(params, cache, tokens[:, part], positions[:, part])
        got.append(chunk)
    got = np.concatenate(got, axis=1)
    for row, part in enumerate(rows):
        alone = hidden(params, packed([part], LENGTH))[0, : len(part)]
        np.testing.assert_allclose(got[row, 12 - len(part) :], alone, atol=1e-5)
    assert np.isfinite(got).all()


def test_depth_is_scanned():
    texts = []
    for num_layers in (2, 12):
        student = make_student(dataclasses.replace(TINY, layers=num_layers, unroll=1))
        params = jax.eval_shape(student.init, jax.random.key(0))
        texts.append(jax.jit(student.hidden).lower(params, batch_of(jnp.zeros((1, 8), jnp.int32))).as_text())
    assert len(texts[1]) < 1.05 * len(texts[0])


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_and_unroll_change_no_gradient(remat):
    tokens = batch_of(jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % VOCAB)
    params = params_of(TINY)

    def gradient(config):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(make_student(config).hidden(p, tokens)))))(params)

    other = gradient(dataclasses.replace(TINY, remat=remat, unroll=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), gradient(TINY), other)


def test_bfloat16_activations_keep_float32_params():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    student, params = make_student(config), params_of(config)
    batch = batch_of(jnp.arange(12, dtype=jnp.int32)[None])
    hidden = jax.jit(student.hidden)(params, batch)
    assert hidden.dtype == student.unembed(params).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact = jax.jit(make_student(TINY).hidden)(params, batch)
    np.testing.assert_allclose(hidden.astype(np.float32), exact, atol=0.1)
    assert logits(student, params, hidden).dtype == jnp.float32


def test_logits_of_both_layouts_and_the_soft_cap():
    tokens = batch_of(jnp.arange(5, dtype=jnp.int32)[None])
    for config in (TINY, dataclasses.replace(TINY, tied=True)):
        student, params = make_student(config), params_of(config)
        hidden = jax.jit(student.hidden)(params, tokens)
        matrix = student.unembed(params)
        assert matrix.shape == ((64, VOCAB) if student.unembed_layout == "dv" else (VOCAB, 64))
        plain = hidden @ (matrix if student.unembed_layout == "dv" else matrix.T)
        np.testing.assert_allclose(logits(student, params, hidden), plain, atol=1e-5)
        capped = logits(student._replace(soft_cap=2.0), params, hidden)
        np.testing.assert_allclose(capped, 2 * np.tanh(plain / 2), atol=1e-5)


def test_initialisation_as_stated():
    """Embeddings 0.5, others fan-in, output projections shrunk by the square root of twice the depth."""
    params = params_of(dataclasses.replace(families.small(4096), conv_width=3))
    block = params["blocks"]
    expected = {
        "embed": (params["embed"], 0.5),
        "unembed": (params["unembed"], 256**-0.5),
        "query": (block["attention"]["query"], 256**-0.5),
        "out": (block["attention"]["out"], 256**-0.5 * 12**-0.5),
        "up": (block["mlp"]["up"], 256**-0.5),
        "down": (block["mlp"]["down"], 768**-0.5 * 12**-0.5),
        "conv": (block["conv"][:, 1:], 0.3),
    }
    for name, (value, std) in expected.items():
        np.testing.assert_allclose(np.std(value), std, rtol=0.03, err_msg=name)
    np.testing.assert_allclose(np.mean(block["conv"][:, 0]), 1.0, atol=0.03)


def test_every_seed_and_every_layer_differs():
    one, other = params_of(TINY, 0), params_of(TINY, 1)
    assert not np.array_equal(one["embed"], other["embed"])
    query = one["blocks"]["attention"]["query"]
    assert not np.array_equal(query[0], query[1])


def test_same_config_same_student():
    assert make_student(TINY) is make_student(families.tiny(VOCAB))


def test_known_shapes():
    """Parameter counts as their makers publish them."""
    published = {
        "qwen3_0_6b": 0.596e9,
        "qwen3_1_7b": 1.72e9,
        "qwen3_8b": 8.19e9,
        "llama3_2_1b": 1.24e9,
        "llama3_1_8b": 8.03e9,
    }
    for name, count in published.items():
        np.testing.assert_allclose(getattr(families, name)().num_params, count, rtol=0.005, err_msg=name)
    assert families.chain(37).num_params == 103_360  # 103k, as the prototypes of both worlds had


def test_llama3_wavelengths_keep_short_and_stretch_long():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    ratio = layers.wavelengths(128, 5e5, None) / layers.wavelengths(128, 5e5, scaling)
    assert ratio[0] == 1.0
    np.testing.assert_allclose(ratio[-1], 8.0, rtol=1e-6)
    assert (np.diff(ratio) >= -1e-6).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 3}, "3 heads and 2 kv_heads"),
        ({"head_dim": 15}, "even"),
        ({"mlp_kind": "swish"}, "swiglu"),
        ({"layers": 0}, "at least 1"),
        ({"conv_width": 1}, "conv_width is 1"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"norm_eps": 0.0}, "positive"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"embed": 64.0}, "whole number"),
        ({"window": Window(0)}, "window is of 0 tokens"),
        ({"window": Window(4, (2,))}, "ascending indices below 2"),
        ({"window": Window(4, (), -1.0)}, "rope_base is -1"),
    ],
)
def test_configurations_that_do_not_fit(change, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(TINY, **change)


@each_variant
def test_shapes_in_the_annotations_hold(config, monkeypatch):
    """Traces the network with its layer functions under a type checker for arrays."""
    checks = jaxtyped(typechecker=beartype)
    for name in ("rms_norm", "wavelengths", "rotation", "rotate", "packed_mask", "attention", "causal_convolution"):
        monkeypatch.setattr(layers, name, checks(getattr(layers, name)))
    make_student.cache_clear()
    student = make_student(config)
    params = jax.eval_shape(student.init, jax.random.key(0))
    jax.eval_shape(student.hidden, params, packed([], LENGTH))
    with pytest.raises(TypeCheckError):
        layers.rms_norm(jnp.ones((2, 3, 4)), jnp.ones(5), 1e-6)
    make_student.cache_clear()
