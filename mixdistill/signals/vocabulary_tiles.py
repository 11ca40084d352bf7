"""Tiles of the vocabulary pass on flat arrays: forward statistics and gradients, never more than one tile of logits.

Everything here sees one device's part: `unembed` may be a slice of the vocabulary that starts at column `first`; the
caller merges. Letters: N tokens, D width, V columns of the slice, M ids, b tokens in a tile, v columns in a tile.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

# A running maximum that no logit is below, finite so that no difference of maxima is a NaN.
LOWEST = -1e30


class Tiles(NamedTuple):
    """Tile sizes: pure performance knobs, the result differs by summation order alone."""

    forward_tokens: int
    forward_vocab: int | None  # None: the whole vocabulary in one tile
    backward_tokens: int
    backward_vocab: int


class Spec(NamedTuple):
    """What is static about one pass. Hashable, so that it can be a static argument."""

    top_k: int
    max_rank: int
    soft_cap: float | None
    temperature: float
    layout: Literal["dv", "vd"]
    num_valid_vocab: int | None  # columns from here on only pad; None: there are none
    tiles: Tiles
    barriers: bool  # separate the reductions: XLA:CPU fuses them into one loop twice as slow as their sum


class Running(NamedTuple):
    """Statistics of the columns seen so far, for each token, in float32."""

    max: Float[Array, "N"]
    total: Float[Array, "N"]  # sum of exp(z - max)
    moment: Float[Array, "N"]  # sum of exp(z - max) * (z - max)
    above: Int[Array, "N"]  # columns with a logit above the target's, the target's own column left out
    top: Float[Array, "N k"]
    logit: Float[Array, "N M"]  # 0 where the id is not among the columns seen


def width(unembed: Array, spec: Spec) -> int:
    """Columns of the unembedding."""
    return unembed.shape[1] if spec.layout == "dv" else unembed.shape[0]


def columns(unembed: Array, start: Int[Array, ""] | int, size: int, spec: Spec) -> Array:
    """`size` columns from `start`, in the layout of the whole."""
    return lax.dynamic_slice_in_dim(unembed, start, size, 1 if spec.layout == "dv" else 0)


def logits(hidden: Num[Array, "b D"], unembed: Array, start: Int[Array, ""] | int, spec: Spec) -> Float[Array, "b v"]:
    """Float32 logits of some columns: capped, divided by the temperature, -inf for columns that only pad."""
    contract = (((1,), (0 if spec.layout == "dv" else 1,)), ((), ()))
    raw = lax.dot_general(hidden, unembed, contract, preferred_element_type=jnp.float32)
    z = finish(raw, spec)
    if spec.num_valid_vocab is None:
        return z
    column = start + lax.broadcasted_iota(jnp.int32, (1, z.shape[1]), 1)
    return jnp.where(column < spec.num_valid_vocab, z, -jnp.inf)


def finish(raw: Float[Array, "..."], spec: Spec) -> Float[Array, "..."]:
    """Soft cap and temperature."""
    capped = raw if spec.soft_cap is None else spec.soft_cap * jnp.tanh(raw / spec.soft_cap)
    return capped if spec.temperature == 1.0 else capped / spec.temperature


def slope(z: Float[Array, "..."], spec: Spec) -> Float[Array, "..."] | float:
    """d(finish)/d(raw), from the finished logits. 0 for columns that only pad."""
    if spec.soft_cap is None:
        return 1.0 / spec.temperature
    ratio = jnp.where(jnp.isfinite(z), z * (spec.temperature / spec.soft_cap), 1.0)
    return (1.0 - ratio * ratio) / spec.temperature


def start_running(num_tokens: int, num_ids: int, spec: Spec) -> Running:
    """The statistics of no columns at all."""
    zeros = jnp.zeros(num_tokens, jnp.float32)
    return Running(
        jnp.full(num_tokens, LOWEST, jnp.float32),
        zeros,
        zeros,
        jnp.zeros(num_tokens, jnp.int32),
        jnp.full((num_tokens, spec.top_k), -jnp.inf, jnp.float32),
        jnp.zeros((num_tokens, num_ids), jnp.float32),
    )


def fold(
    running: Running,
    z: Float[Array, "b v"],
    ids: Int[Array, "b M"],
    start: Int[Array, ""] | int,
    target: Float[Array, "b"] | None,
    spec: Spec,
) -> Running:
    """Add the columns `start, start + 1, ...` with logits `z`. `target` is the target's logit; None: it is in `z`."""
    apart = lax.optimization_barrier if spec.barriers else (lambda x: x)
    peak = jnp.maximum(running.max, z.max(1))
    z, peak = apart((z, peak))
    total = jnp.exp(z - peak[:, None]).sum(1)
    z, peak, total = apart((z, peak, total))
    below = jnp.maximum(z - peak[:, None], LOWEST)  # -inf * 0 of a padded column would be a NaN
    moment = (jnp.exp(below) * below).sum(1)
    z, moment = apart((z, moment))
    local = ids - start
    here = (local >= 0) & (local < z.shape[1])
    found = jnp.take_along_axis(z, jnp.clip(local, 0, z.shape[1] - 1), 1)
    logit = jnp.where(here, found, running.logit)
    level = logit[:, 0] if target is None else target
    # The target's own column is left out by its number: a gathered logit and one of a matrix product differ in the
    # last bit.
    column = lax.broadcasted_iota(jnp.int32, (1, z.shape[1]), 1)
    above = ((z > level[:, None]) & (column != local[:, :1])).sum(1, dtype=jnp.int32)
    shift = running.max - peak
    scale = jnp.exp(shift)
    return Running(
        peak,
        scale * running.total + total,
        scale * (running.moment + running.total * shift) + moment,
        running.above + above,
        _merge_top(running.top, z, spec.top_k),
        logit,
    )


def _merge_top(top: Float[Array, "b k"], z: Float[Array, "b v"], k: int) -> Float[Array, "b k"]:
    if k == 0:
        return top
    best = lax.top_k(z, min(k, z.shape[1]))[0]
    return lax.top_k(jnp.concatenate([top, best], 1), k)[0]


def forward(
    hidden: Num[Array, "N D"],
    unembed: Array,
    ids: Int[Array, "N M"],
    valid: Bool[Array, "N"] | None,
    target: Float[Array, "N"] | None,
    spec: Spec,
    first: Int[Array, ""] | int = 0,
) -> Running:
    """Statistics of every token over the columns of `unembed`, the first of which is column `first`.

    Tokens that are not `valid` cost nothing: they are sorted behind the others and their tiles are not visited.
    """
    num_tokens, size = hidden.shape[0], min(spec.tiles.forward_tokens, max(hidden.shape[0], 1))
    order = None if valid is None else jnp.argsort(~valid, stable=True)
    hidden, ids, target = (pad(take(x, order), size) for x in (hidden, ids, target))
    live = num_tokens if valid is None else valid.sum(dtype=jnp.int32)

    def body(i, out: Running) -> Running:
        h, tile_ids, level = (None if x is None else tile(x, i, size) for x in (hidden, ids, target))
        done = _fold_columns(h, unembed, tile_ids, level, spec, first)
        return jax.tree.map(lambda o, x: lax.dynamic_update_slice_in_dim(o, x, i * size, 0), out, done)

    running = lax.fori_loop(0, -(-live // size), body, start_running(hidden.shape[0], ids.shape[1], spec))
    running = jax.tree.map(lambda x: restore(x[:num_tokens], order), running)
    if valid is None:
        return running
    # What lies in the last tile behind the live tokens was computed, from whatever a dead token holds.
    nothing = start_running(num_tokens, ids.shape[1], spec)
    return jax.tree.map(lambda x, o: jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, o), running, nothing)


def _fold_columns(h, unembed, ids, target, spec: Spec, first) -> Running:
    """One token tile over all columns, in one piece or tile by tile with a static remainder."""
    running, num_columns = start_running(h.shape[0], ids.shape[1], spec), width(unembed, spec)
    size = spec.tiles.forward_vocab or num_columns
    if size >= num_columns:
        return fold(running, logits(h, unembed, first, spec), ids, first, target, spec)
    assert target is not None, "over several tiles the target's logit has to be known beforehand"

    def body(j, running):
        z = logits(h, columns(unembed, j * size, size, spec), first + j * size, spec)
        return fold(running, z, ids, first + j * size, target, spec)

    full = num_columns // size
    running = lax.fori_loop(0, full, body, running)
    if rest := num_columns % size:
        z = logits(h, columns(unembed, full * size, rest, spec), first + full * size, spec)
        running = fold(running, z, ids, first + full * size, target, spec)
    return running


def gather_logit(
    hidden: Num[Array, "N D"], unembed: Array, ids: Int[Array, "N"], spec: Spec, first: Int[Array, ""] | int = 0
) -> Float[Array, "N"]:
    """The logit of one id a token by a gathered dot product; 0 where the id is not among the columns."""
    local = ids - first
    here = (local >= 0) & (local < width(unembed, spec))
    rows = jnp.take(unembed, jnp.clip(local, 0, width(unembed, spec) - 1), axis=1 if spec.layout == "dv" else 0)
    picked = jnp.einsum(
        "nd,dn->n" if spec.layout == "dv" else "nd,nd->n", hidden, rows, preferred_element_type=jnp.float32
    )
    return jnp.where(here, finish(picked, spec), 0.0)


class Cotangents(NamedTuple):
    """What the backward needs of each token. A token is dead iff `lse` and all of `logit` are exactly zero."""

    lse: Float[Array, "N"]
    logit: Float[Array, "N M"]

    def live(self) -> Bool[Array, "N"]:
        return (self.lse != 0) | (self.logit != 0).any(1)


def gradient_of_logits(z, ids, lse, cotangents: Cotangents, start, spec: Spec, dtype) -> Num[Array, "b v"]:
    """d(loss)/d(raw logits) of some columns: g_lse * softmax + scatter(g_logit), in the dtype of the matrix products.

    A float32 result would turn both products of a bfloat16 backward into float32 ones at half the rate.
    """
    local = ids - start
    column = lax.broadcasted_iota(jnp.int32, (1, z.shape[1]), 1)
    dz = cotangents.lse[:, None] * jnp.exp(z - lse[:, None])
    dz = dz + jnp.where(column == local[:, :1], cotangents.logit[:, :1], 0.0)
    if ids.shape[1] > 1:
        elsewhere = jnp.where(local[:, 1:] < 0, z.shape[1], local[:, 1:])
        dz = dz.at[jnp.arange(z.shape[0])[:, None], elsewhere].add(cotangents.logit[:, 1:], mode="drop")
    return (dz * slope(z, spec)).astype(dtype)


def products(dz, hidden, unembed, spec: Spec):
    """The two matrix products of the backward, in float32: to the hidden states and to the unembedding's columns."""
    to_hidden = (((1,), (1 if spec.layout == "dv" else 0,)), ((), ()))
    dh = lax.dot_general(dz, unembed, to_hidden, preferred_element_type=jnp.float32)
    a, b = (hidden, dz) if spec.layout == "dv" else (dz, hidden)
    return dh, lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def compact(hidden, ids, lse, cotangents: Cotangents):
    """Live tokens first, dead ones behind and emptied, so that not even a NaN of theirs reaches a sum."""
    live = cotangents.live()
    order = jnp.argsort(~live, stable=True)
    emptied = (jnp.where(live[:, None], hidden, 0), ids, jnp.where(live, lse, 0.0), cotangents)
    return jax.tree.map(lambda x: x[order], emptied), order, live.sum(dtype=jnp.int32)


def backward_tiles(hidden, unembed, ids, lse, cotangents: Cotangents, spec: Spec, first=0):
    """Gradients (hidden, unembed), both float32 sums: vocabulary tiles outside, live token tiles inside.

    The outer trip count is static, the inner one follows the number of live tokens. Gradient tiles of the unembedding
    are written in place, and the remainder of the vocabulary is a tile of its own: no padded copy of the unembedding.
    """
    num_tokens, num_columns = hidden.shape[0], width(unembed, spec)
    size, span = min(spec.tiles.backward_tokens, num_tokens), min(spec.tiles.backward_vocab, num_columns)
    packed, order, num_live = compact(hidden, ids, lse, cotangents)
    packed = jax.tree.map(lambda x: pad(x, size), packed)
    axis = 1 if spec.layout == "dv" else 0

    def vocabulary_tile(start, span, carry):
        dh, dw = carry
        part = columns(unembed, start, span, spec)

        def token_tile(i, carry):
            dh, dpart = carry
            h, tile_ids, tile_lse, g = jax.tree.map(lambda x: tile(x, i, size), packed)
            z = logits(h, part, first + start, spec)
            dz = gradient_of_logits(z, tile_ids, tile_lse, g, first + start, spec, hidden.dtype)
            more_dh, more_dw = products(dz, h, part, spec)
            dh = lax.dynamic_update_slice_in_dim(dh, tile(dh, i, size) + more_dh, i * size, 0)
            return dh, dpart + more_dw

        dh, dpart = lax.fori_loop(0, -(-num_live // size), token_tile, (dh, jnp.zeros(part.shape, jnp.float32)))
        return dh, lax.dynamic_update_slice_in_dim(dw, dpart.astype(dw.dtype), start, axis)

    full = num_columns // span
    carry = (jnp.zeros(packed[0].shape, jnp.float32), jnp.zeros(unembed.shape, unembed.dtype))
    carry = lax.fori_loop(0, full, lambda j, carry: vocabulary_tile(j * span, span, carry), carry)
    if rest := num_columns % span:
        carry = vocabulary_tile(full * span, rest, carry)
    return restore(carry[0][:num_tokens], order), carry[1]


BUCKETS = 8  # static prefixes: dead tokens are skipped in steps of an eighth


def backward_buckets(hidden, unembed, ids, lse, cotangents: Cotangents, spec: Spec, first=0):
    """As `backward_tiles`, with full-size matrix products over one of eight static prefixes of the live tokens."""
    num_tokens = hidden.shape[0]
    packed, order, num_live = compact(hidden, ids, lse, cotangents)

    def branch(count: int):
        def run(packed):
            part = jax.tree.map(lambda x: x[:count], packed)
            dh, dw = _backward_columns(*part, unembed, spec, first)
            return jnp.zeros((num_tokens, hidden.shape[1]), jnp.float32).at[:count].set(dh), dw

        return run

    counts = sorted({-(-num_tokens * i // BUCKETS) for i in range(BUCKETS + 1)})
    which = jnp.searchsorted(jnp.array(counts), num_live)
    dh, dw = lax.switch(which, [branch(count) for count in counts], packed)
    return restore(dh, order), dw


def _backward_columns(hidden, ids, lse, cotangents, unembed, spec: Spec, first):
    """Gradients of all given tokens, vocabulary tile by vocabulary tile."""
    num_columns = width(unembed, spec)
    span, axis = min(spec.tiles.backward_vocab, num_columns), 1 if spec.layout == "dv" else 0

    def vocabulary_tile(start, span, carry):
        dh, dw = carry
        part = columns(unembed, start, span, spec)
        z = logits(hidden, part, first + start, spec)
        dz = gradient_of_logits(z, ids, lse, cotangents, first + start, spec, hidden.dtype)
        more_dh, more_dw = products(dz, hidden, part, spec)
        return dh + more_dh, lax.dynamic_update_slice_in_dim(dw, more_dw.astype(dw.dtype), start, axis)

    full = num_columns // span
    carry = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(unembed.shape, unembed.dtype))
    if hidden.shape[0] == 0:
        return carry
    carry = lax.fori_loop(0, full, lambda j, carry: vocabulary_tile(j * span, span, carry), carry)
    if rest := num_columns % span:
        carry = vocabulary_tile(full * span, rest, carry)
    return carry


def backward_dense(hidden, unembed, ids, lse, z, cotangents: Cotangents, spec: Spec):
    """Gradients from logits that the forward kept: three products instead of four, `[N, V]` of memory."""
    live = cotangents.live()
    hidden = jnp.where(live[:, None], hidden, 0)
    z = jnp.where(live[:, None], z, 0.0)
    dz = gradient_of_logits(z, ids, jnp.where(live, lse, 0.0), cotangents, 0, spec, hidden.dtype)
    return products(dz, hidden, unembed, spec)


def tile(x: Array, i: Int[Array, ""] | int, size: int) -> Array:
    """Rows `i * size` to `(i + 1) * size`."""
    return lax.dynamic_slice_in_dim(x, i * size, size, 0)


def pad(x: Array | None, multiple: int) -> Array | None:
    """Rows of zeros at the end, up to a multiple."""
    if x is None or not (missing := -x.shape[0] % multiple):
        return x
    return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def take(x: Array | None, order: Int[Array, "N"] | None) -> Array | None:
    """Rows in this order."""
    return x if x is None or order is None else x[order]


def restore(x: Array, order: Int[Array, "N"] | None) -> Array:
    """Undo `take`."""
    return x if order is None else jnp.zeros_like(x).at[order].set(x, unique_indices=True)
