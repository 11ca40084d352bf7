"""Gradients of the vocabulary pass: `g_lse * softmax + scatter(g_logit)`, recomputed tile by tile for live tokens only.

Vocabulary tiles stand outside, their number is static; what differs is how the live tokens are visited inside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from mixdistill.signals.vocabulary_tiles import (
    Spec,
    columns,
    first_column,
    live_first,
    logits,
    over_vocabulary,
    pad,
    pad_to,
    put_columns,
    put_tile,
    restore,
    slope,
    tile,
    width,
)

BUCKETS = 8  # static prefixes: dead tokens are skipped in steps of an eighth


class Tokens(NamedTuple):
    """What the backward needs of each token, live ones first; the dead are emptied and lie behind them."""

    hidden: Num[Array, "N D"]
    ids: Int[Array, "N M"]
    lse: Float[Array, "N"]
    g_lse: Float[Array, "N"]
    g_logit: Float[Array, "N M"]
    place: Int[Array, "N"]  # where the token was


def is_live(g_lse: Float[Array, "N"], g_logit: Float[Array, "N M"]) -> Bool[Array, "N"]:
    """A token is dead iff its cotangents are all exactly zero."""
    return (g_lse != 0) | (g_logit != 0).any(1)


def backward(hidden, unembed, ids, lse, kept, g_lse, g_logit, spec: Spec):
    """Gradients (hidden `[N, D]` float32, unembed): those of this device's tokens through this device's columns, and of
    this device's columns through all tokens. `kept` are the logits `[N, V]` if the forward kept them, else None.
    """
    num_tokens, num_columns = len(hidden), width(unembed, spec)
    size, span = min(spec.tiles.backward_tokens, num_tokens), min(spec.tiles.backward_vocab, num_columns)
    live = is_live(g_lse, g_logit)
    # Emptied, so that not even a NaN of a dead token reaches a sum.
    order, *rows = live_first(
        live, jnp.where(live[:, None], hidden, 0), ids, jnp.where(live, lse, 0.0), g_lse, g_logit, multiple=size
    )
    tokens, num_live = Tokens(*rows, place=pad(order, size)), live.sum(dtype=jnp.int32)
    first = first_column(unembed, spec)

    def vocabulary_tile(carry, start, span: int):
        dh, dw = carry
        part = columns(unembed, start, span, spec)
        z = None if kept is None else lax.dynamic_slice_in_dim(kept, start, span, 1)
        if spec.backward == "buckets":
            dh, dpart = _by_prefix(dh, part, tokens, num_live, first + start, spec)
        else:
            dh, dpart = _by_tile(dh, part, z, tokens, -(-num_live // size), size, first + start, spec)
        # No collective stands inside these two: each device has its own number of live tokens.
        return dh, put_columns(dw, dpart, start, spec)

    carry = jnp.zeros(tokens.hidden.shape, jnp.float32), jnp.zeros(unembed.shape, unembed.dtype)
    dh, dw = over_vocabulary(vocabulary_tile, carry, num_columns, span)
    dh = restore(dh, order)
    return dh if spec.split.vocab is None else lax.psum(dh, spec.split.vocab), dw


def _by_tile(dh, part, z, tokens: Tokens, num_tiles, size: int, start, spec: Spec):
    """Live tokens in tiles, as many as it takes: the trip count is dynamic."""

    def token_tile(i, carry):
        dh, dpart = carry
        some = jax.tree.map(lambda x: tile(x, i, size), tokens)
        # A row of padding has the place of the first token, and no cotangent.
        known = None if z is None else jnp.where(is_live(some.g_lse, some.g_logit)[:, None], z[some.place], 0.0)
        more_dh, more_dpart = _gradients(some, part, known, start, spec)
        return put_tile(dh, tile(dh, i, size) + more_dh, i), dpart + more_dpart

    return lax.fori_loop(0, num_tiles, token_tile, (dh, jnp.zeros(part.shape, jnp.float32)))


def _by_prefix(dh, part, tokens: Tokens, num_live, start, spec: Spec):
    """The live tokens in one piece: the shortest of eight static prefixes that holds them."""

    def prefix(count: int):
        def run(dh):
            if count == 0:
                return dh, jnp.zeros(part.shape, jnp.float32)
            more_dh, dpart = _gradients(jax.tree.map(lambda x: x[:count], tokens), part, None, start, spec)
            # Not `dh.at[:count].add`: in a branch under shard_map that crashes the compiler of XLA:CPU (jaxlib 0.11.2).
            return dh + pad_to(more_dh, len(dh)), dpart

        return run

    counts = sorted({-(-len(dh) * i // BUCKETS) for i in range(BUCKETS + 1)})
    return lax.switch(jnp.searchsorted(jnp.array(counts), num_live), [prefix(count) for count in counts], dh)


def _gradients(tokens: Tokens, part, z, start, spec: Spec) -> tuple[Float[Array, "b D"], Float[Array, "..."]]:
    """Gradients of some tokens' hidden states and of the columns `part`; `z` are their logits, None: not known."""
    z = logits(tokens.hidden, part, start, spec) if z is None else z
    dz = _gradient_of_logits(z, tokens, start, spec)
    dh = lax.dot_general(dz, part, (((1,), (spec.vocab_dim,)), ((), ())), preferred_element_type=jnp.float32)
    a, b = (tokens.hidden, dz) if spec.layout == "dv" else (dz, tokens.hidden)
    return dh, lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _gradient_of_logits(z, tokens: Tokens, start, spec: Spec) -> Num[Array, "b v"]:
    """d(loss)/d(raw logits) of some columns, in the dtype of the matrix products.

    A float32 result would turn both products of a bfloat16 backward into float32 ones at half the rate.
    """
    local = tokens.ids - start
    column = lax.broadcasted_iota(jnp.int32, (1, z.shape[1]), 1)
    dz = tokens.g_lse[:, None] * jnp.exp(z - tokens.lse[:, None])
    dz = dz + jnp.where(column == local[:, :1], tokens.g_logit[:, :1], 0.0)
    if tokens.ids.shape[1] > 1:
        elsewhere = jnp.where(local[:, 1:] < 0, z.shape[1], local[:, 1:])
        dz = dz.at[jnp.arange(z.shape[0])[:, None], elsewhere].add(tokens.g_logit[:, 1:], mode="drop")
    return (dz * slope(z, spec)).astype(tokens.hidden.dtype)
