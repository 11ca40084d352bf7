"""The vocabulary pass on eight devices is that of one, and the unembedding stays where it is."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mixdistill.errors import UserError
from mixdistill.signals.confidence import step_lowest_confidence, step_mean_confidence
from mixdistill.signals.steps import step_run
from mixdistill.signals.vocabulary import Tiles, vocabulary_pass

ROWS, LENGTH, EMBED, VOCAB = 16, 6, 24, 208
TILES = Tiles(4, 16, 4, 16)
NUM_VALID = 203


def mesh_of(*sizes: int):
    return jax.make_mesh(sizes, ("data", "model", "context")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes))


def arrays(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(ROWS, LENGTH, EMBED)), dtype)
    unembed = jnp.asarray(rng.normal(size=(EMBED, VOCAB)) * 2 / EMBED**0.5, dtype)
    ids = jnp.asarray(rng.integers(0, NUM_VALID, (ROWS, LENGTH, 3)), jnp.int32)
    valid = jnp.asarray(rng.random((ROWS, LENGTH)) < 0.7)
    weight = jnp.asarray(rng.random((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.4), jnp.float32)
    return hidden, unembed, ids, valid, weight.at[:2].set(0.0)  # one device of eight has nothing to learn


def gradients(**knobs):
    """A compiled-to-be function of all arrays: (statistics, gradients), gated by the rank."""

    def loss(hidden, unembed, ids, valid, weight):
        stats = vocabulary_pass(
            hidden, unembed, ids, valid=valid, tiles=TILES, num_valid_vocab=NUM_VALID, top_k=5, **knobs
        )
        weight = jnp.where(valid & (stats.rank < 90), weight, 0.0)
        far = (stats.lse[..., None] - stats.logit) * jnp.array([1.0, 0.3, 0.1])
        return (weight[..., None] * far).sum(), stats

    # Compiling is what costs here; the code is the same.
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=quick)


@functools.cache
def alone():
    (_, stats), grads = gradients(backward="tiles")(*arrays())
    return jax.device_get((stats, grads))


def off(a, b):
    return np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()


def gathered(compiled) -> list[int]:
    """Elements of the result of every all-gather in the program."""
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\][^=\n]* all-gather(?:-start)?\(", compiled.as_text())
    return [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]


@pytest.mark.parametrize(
    ("sizes", "knobs"),
    [
        ((8, 1), {"backward": "tiles"}),
        ((8, 1), {"backward": "tiles", "embed_axes": ("data",)}),
        ((4, 2), {"backward": "buckets", "embed_axes": ("data",)}),
        ((4, 2), {"backward": "dense"}),
        ((2, 4), {"backward": "tiles", "embed_axes": ("data",)}),
        ((1, 8), {"backward": "buckets"}),
        ((2, 2, 2), {"backward": "tiles", "sequence_axes": ("context",), "embed_axes": ("data", "context")}),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else "-".join(map(str, value.values())),
)
def test_every_mesh_gives_what_one_device_gives(sizes, knobs):
    mesh = mesh_of(*sizes)
    lead = P("data", *knobs.get("sequence_axes", ()))
    unembed = P(knobs.get("embed_axes"), "model")
    put = [
        jax.device_put(x, NamedSharding(mesh, s))
        for x, s in zip(arrays(), (lead, unembed, lead, lead, lead), strict=True)
    ]
    run = gradients(mesh=mesh, token_axes=("data",), vocab_axis="model", **knobs)
    compiled = run.lower(*put).compile()
    (_, stats), grads = compiled(*put)
    expected, expected_grads = alone()
    for name in ("logit", "lse", "entropy", "confidence", "tail_mass", "max_logit"):
        assert off(getattr(stats, name), getattr(expected, name)) < 1e-6, name
    np.testing.assert_array_equal(stats.rank, expected.rank)
    np.testing.assert_array_equal(stats.top1, expected.top1)
    assert max(off(a, b) for a, b in zip(grads, expected_grads, strict=True)) < 1e-6
    assert grads[1].sharding.is_equivalent_to(NamedSharding(mesh, unembed), 2)
    # The largest thing that is ever gathered is a vocabulary tile, or a few numbers of each token.
    tokens = ROWS * LENGTH // (sizes[0] * math.prod(sizes[2:]))
    tile, numbers = EMBED * TILES.backward_vocab, max(ROWS * LENGTH, tokens * 5 * sizes[1])
    if knobs["backward"] != "dense":
        assert max(gathered(compiled), default=0) <= max(tile, numbers)
        assert (tile in gathered(compiled)) == ("embed_axes" in knobs)


def test_temporaries_of_a_device_are_tiles():
    mesh = mesh_of(2, 4)
    tokens, embed, vocab = 512, 64, 8192
    where = {name: NamedSharding(mesh, spec) for name, spec in (("t", P("data")), ("w", P("data", "model")))}
    given = (
        jax.ShapeDtypeStruct((tokens, embed), jnp.float32, sharding=where["t"]),
        jax.ShapeDtypeStruct((embed, vocab), jnp.float32, sharding=where["w"]),
        jax.ShapeDtypeStruct((tokens, 1), jnp.int32, sharding=where["t"]),
    )

    def loss(hidden, unembed, ids):
        stats = vocabulary_pass(
            hidden,
            unembed,
            ids,
            backward="tiles",
            tiles=Tiles(32, 256, 32, 256),
            mesh=mesh,
            token_axes=("data",),
            embed_axes=("data",),
            vocab_axis="model",
        )
        return jnp.where(stats.rank < 50, stats.lse - stats.logit[..., 0], 0.0).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile()
    local_logits = 4 * (tokens // 2) * (vocab // 4)
    assert compiled.memory_analysis().temp_size_in_bytes < local_logits / 2


def test_statistics_of_steps_are_right_where_sequences_are_split():
    rng = np.random.default_rng(0)
    confidence = jnp.asarray(rng.random((4, 64)), jnp.float32)
    segment = jnp.asarray(np.sort(rng.integers(1, 4, (4, 64))))
    step = jnp.asarray(rng.integers(0, 2, (4, 64)).cumsum(1) // 5)  # runs that cross every boundary between devices
    valid = jnp.asarray(rng.random((4, 64)) < 0.9)

    def statistics(confidence, segment, step, valid):
        run = step_run(segment, step)
        mean = step_mean_confidence(confidence, valid, run)
        return (
            mean,
            step_lowest_confidence(confidence, valid, run, window=4),
            jax.grad(lambda c: step_mean_confidence(c, valid, run).sum())(confidence),
        )

    given = (confidence, segment, step, valid)
    where = NamedSharding(mesh_of(2, 4), P("data", "model"))
    split = jax.jit(statistics)(*(jax.device_put(x, where) for x in given))
    for a, b in zip(split, statistics(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"vocab_axis": "modle"}, "unknown mesh axis 'modle'; did you mean 'model'"),
        ({"vocab_axis": "data"}, "a mesh axis splits one thing only; given data, data"),
        ({"embed_axes": ("model",)}, "embed_axes are some of the axes that split the tokens; 'model' is none of them"),
        (
            {"vocab_axis": "model"},
            "vocab_axis model split the columns of unembed, 30, into 4, .* give num_valid_vocab=30",
        ),
        ({"token_axes": ("data", "model")}, "token_axes data, model split the rows of hidden, 12, into 8"),
        ({"embed_axes": ("data",)}, "embed_axes data split the width of unembed, 7, into 2"),
        ({"sequence_axes": ("model",)}, "sequence_axes split the second of at least three dimensions"),
        ({"mesh": None}, "mesh axes data are named, but no mesh is given"),
    ],
)
def test_axes_that_do_not_fit_are_refused(knobs, message):
    knobs = {"mesh": mesh_of(2, 4), "token_axes": ("data",), **knobs}
    with pytest.raises(UserError, match=message):
        vocabulary_pass(jnp.ones((12, 7)), jnp.ones((7, 30)), jnp.zeros((12, 1), jnp.int32), **knobs)
