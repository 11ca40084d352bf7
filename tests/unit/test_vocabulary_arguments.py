"""What does not fit is refused before anything compiles; the backward is picked by size; memory is counted."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

from mixdistill.cli import main
from mixdistill.signals.vocabulary import VocabularyStats, vocabulary_pass
from mixdistill.signals.vocabulary_choice import choose_backward, default_tiles

HIDDEN, UNEMBED, IDS = jnp.ones((2, 5, 8)), jnp.ones((8, 30)), jnp.zeros((2, 5, 1), jnp.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": jnp.ones(8)}, r"hidden is \[..., D\] .* given \(8,\)"),
        ({"hidden": jnp.ones((0, 8))}, "hidden is .* with at least one token"),
        ({"unembed": jnp.ones((2, 8, 30))}, "unembed has two dimensions"),
        ({"unembed": jnp.ones((30, 8))}, r"hidden has width 8, unembed \(layout 'dv'\) has 30"),
        ({"layout": "vd"}, r"hidden has width 8, unembed \(layout 'vd'\) has 30"),
        ({"layout": "dd"}, "unknown layout 'dd'"),
        ({"hidden": jnp.ones((2, 5, 8), jnp.float16)}, "hidden is float16; it is float32 or bfloat16"),
        ({"unembed": jnp.ones((8, 30), jnp.int8)}, "unembed is int8"),
        ({"ids": IDS[..., 0]}, r"ids are \[..., m\] .* given \(2, 5\)"),
        ({"ids": IDS[:1]}, r"given \(1, 5, 1\)"),
        ({"ids": IDS.astype(jnp.float32)}, "ids are float32; they are integers"),
        ({"valid": jnp.ones((2, 5))}, r"valid is bool \(2, 5\); given float32"),
        ({"valid": jnp.ones((2, 4), bool)}, r"given bool \(2, 4\)"),
        ({"top_k": 31}, "top_k is 31; it is between 0 and the vocabulary's 30"),
        ({"max_rank": 0}, "max_rank is 0; it is at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it is positive"),
        ({"soft_cap": -1.0}, "soft_cap is -1.0; it is positive"),
        ({"num_valid_vocab": 19}, "num_valid_vocab is 19; it is between 20 and 30"),
        ({"num_valid_vocab": 31}, "num_valid_vocab is 31"),
        ({"backward": "bucket"}, "unknown backward 'bucket'; did you mean 'buckets'"),
        ({"implementation": "triton"}, "unknown implementation 'triton'.* known: pallas, xla"),
        (
            {"implementation": "pallas", "platform": "gpu"},
            "implementation 'pallas' is a kernel for TPUs; on gpu use 'xla'",
        ),
        ({"implementation": "pallas", "backward": "dense"}, "backward 'dense' keeps all logits"),
    ],
)
def test_bad_input_is_a_value_error(change, message):
    given = {"hidden": HIDDEN, "unembed": UNEMBED, "ids": IDS, **change}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(vocabulary_pass, **{k: v for k, v in given.items() if k not in _ARRAYS}),
            *(given[k] for k in _ARRAYS),
        )


_ARRAYS = ("hidden", "unembed", "ids")


def test_the_backward_is_picked_by_platform_and_size(capsys):
    assert choose_backward("cpu", 1024, 32768)[0] == "dense"
    assert choose_backward("cpu", 8192, 151936)[0] == "tiles"
    assert choose_backward("cpu", 1024, 32768, "pallas")[0] == "tiles"
    assert choose_backward("gpu", 8, 8)[0] == "buckets"
    assert choose_backward("tpu", 8, 8)[0] == "tiles"
    assert main(["explain", "experiments.base:smoke"]) == 0
    assert "backward 'dense' on cpu for 64 tokens x 512 columns a device" in capsys.readouterr().out


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_tile_of_tokens_is_at_most_an_eighth_of_them(platform):
    assert default_tiles(platform, 4096, 151936).backward_tokens <= 512
    gathered = default_tiles(platform, 4096, 151936, gathered=True)
    assert gathered.forward_vocab == gathered.backward_vocab


def step(hidden, unembed, ids, weight, **knobs) -> tuple[tuple[jax.Array, VocabularyStats], tuple[jax.Array, ...]]:
    def loss(hidden, unembed):
        stats = vocabulary_pass(hidden, unembed, ids, **knobs)
        return (weight * (stats.lse - stats.logit[..., 0])).sum(), stats

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, unembed)


def dense_cross_entropy(hidden, unembed, ids, weight):
    def loss(hidden, unembed):
        logits = jnp.einsum("nd,dv->nv", hidden, unembed, preferred_element_type=jnp.float32)
        return (weight * optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 0])).sum()

    return jax.value_and_grad(loss, (0, 1))(hidden, unembed)


def shapes(tokens: int, embed: int, vocab: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    kinds = {
        (tokens, embed): jnp.bfloat16,
        (embed, vocab): jnp.bfloat16,
        (tokens, 1): jnp.int32,
        (tokens,): jnp.float32,
    }
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds.items())


def test_temporaries_are_a_twentieth_of_those_of_dense_cross_entropy():
    given = shapes(8192, 1024, 151936)
    ours, dense = (
        jax.jit(fn).lower(*given).compile().memory_analysis().temp_size_in_bytes for fn in (step, dense_cross_entropy)
    )
    assert dense > 4 * 8192 * 151936  # at least the logits
    assert ours <= 0.05 * dense


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_it_exports_for_machines_that_are_not_here(platform):
    for backward in ("tiles", "buckets"):
        run = functools.partial(step, backward=backward, platform={"cuda": "gpu"}.get(platform, platform))
        assert export.export(jax.jit(run), platforms=[platform])(*shapes(256, 64, 1000)).platforms == (platform,)
