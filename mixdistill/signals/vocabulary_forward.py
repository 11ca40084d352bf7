"""Forward statistics of the vocabulary pass: a running state per token, folded over tiles of logits.

m' = max(m, max z),  s' = e^(m - m') s + sum e^(z - m'),  t' likewise for sum e^(z - m') (z - m'),
lse = m + log s,  entropy = log s - t / s.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from mixdistill.signals.vocabulary_tiles import (
    Spec,
    columns,
    finish,
    first_column,
    live_first,
    logits,
    over_vocabulary,
    pad,
    put_tile,
    restore,
    tile,
    width,
)

# A running maximum that no logit is below, finite so that no difference of maxima is a NaN.
LOWEST = -1e30
GROUP = 32  # columns whose maximum is taken first, so that the largest logits are sought among few


class Running(NamedTuple):
    """Statistics of the columns seen so far, for each token, in float32."""

    max: Float[Array, "N"]
    total: Float[Array, "N"]  # sum of exp(z - max)
    moment: Float[Array, "N"]  # sum of exp(z - max) * (z - max)
    above: Int[Array, "N"]  # columns with a logit above the target's, the target's own column left out
    top: Float[Array, "N k"]  # the largest logits, in order
    logit: Float[Array, "N M"]  # 0 where the id is not among the columns seen


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
    # XLA:CPU fuses the reductions into one loop that takes twice the time of all of them one by one.
    apart = lax.optimization_barrier if spec.platform == "cpu" else (lambda x: x)
    maxima = group_maxima(z, spec)
    peak = jnp.maximum(running.max, maxima.max(1))
    z, maxima, peak = apart((z, maxima, peak))
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
    # The target's own column is left out by its number: gathered or made twice by a fusion, its logit may differ in the
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
        largest(running.top, z, maxima, spec.top_k),
        logit,
    )


def group_maxima(z: Float[Array, "b v"], spec: Spec) -> Float[Array, "b n"]:
    """The largest logit of each group of columns `i, i + n, i + 2n, ...`; the logits themselves where they are few."""
    # On a TPU the reshape is a copy, and a full selection is cheaper.
    if spec.platform == "tpu" or z.shape[1] < 4 * GROUP * max(spec.top_k, 1):
        return z
    num_groups = z.shape[1] // GROUP
    grouped = z[:, : num_groups * GROUP].reshape(len(z), GROUP, num_groups).max(1)
    return jnp.concatenate([grouped, z[:, num_groups * GROUP :]], 1)


def largest(top: Float[Array, "b k"], z: Float[Array, "b v"], maxima, k: int) -> Float[Array, "b k"]:
    """The `k` largest of `top` and `z`, in order. They lie in the `k` groups with the largest maxima.

    Only values count, and an unstable selection is faster on a GPU.
    """
    if k == 0:
        return top
    if maxima.shape[1] < z.shape[1]:
        num_groups = z.shape[1] // GROUP
        group = lax.top_k(maxima[:, :num_groups], k, is_stable=False)[1]
        column = group[:, :, None] + num_groups * jnp.arange(GROUP)
        members = jnp.take_along_axis(z, column.reshape(len(z), -1), 1)
        z = jnp.concatenate([members, z[:, num_groups * GROUP :]], 1)
    best = lax.top_k(z, min(k, z.shape[1]), is_stable=False)[0]
    return lax.top_k(jnp.concatenate([top, best], 1), k, is_stable=False)[0]


def forward(
    hidden: Num[Array, "N D"], unembed: Array, ids: Int[Array, "N M"], valid: Bool[Array, "N"] | None, spec: Spec
) -> Running:
    """Statistics of every token over this device's columns, tile by tile.

    Tokens that are not `valid` cost nothing: they are sorted behind the others and their tiles are not visited.
    """
    num_tokens, num_columns = len(hidden), width(unembed, spec)
    size, span = min(spec.tiles.forward_tokens, num_tokens), min(spec.tiles.forward_vocab or num_columns, num_columns)
    known = span < num_columns or spec.split.vocab is not None
    rows = (hidden, ids, target_logit(hidden, unembed, ids[:, 0], spec)) if known else (hidden, ids)
    if valid is None:
        order, live, rows = None, num_tokens, tuple(pad(x, size) for x in rows)
    else:
        order, *rows = live_first(valid, *rows, multiple=size)
        live = valid.sum(dtype=jnp.int32)
    first = first_column(unembed, spec)

    def vocabulary_tile(running: Running, start, span: int) -> Running:
        part = columns(unembed, start, span, spec)

        def token_tile(i, running: Running) -> Running:
            h, tile_ids, *target = (tile(x, i, size) for x in rows)
            z = logits(h, part, first + start, spec)
            before = jax.tree.map(lambda x: tile(x, i, size), running)
            after = fold(before, z, tile_ids, first + start, target[0] if target else None, spec)
            return jax.tree.map(lambda x, new: put_tile(x, new, i), running, after)

        return lax.fori_loop(0, -(-live // size), token_tile, running)

    running = over_vocabulary(vocabulary_tile, start_running(len(rows[0]), ids.shape[1], spec), num_columns, span)
    if order is None:
        return jax.tree.map(lambda x: x[:num_tokens], running)
    # What lies in the last tile behind the live tokens was computed, from whatever a dead token holds.
    return keep(valid, jax.tree.map(lambda x: restore(x, order), running), spec)


def forward_whole(z: Float[Array, "N V"], unembed: Array, hidden, ids, valid, spec: Spec) -> Running:
    """As `forward`, from all logits at once."""
    target = None if spec.split.vocab is None else target_logit(hidden, unembed, ids[:, 0], spec)
    running = fold(start_running(len(z), ids.shape[1], spec), z, ids, first_column(unembed, spec), target, spec)
    return keep(valid, running, spec)


def keep(valid: Bool[Array, "N"] | None, running: Running, spec: Spec) -> Running:
    """The statistics of the valid tokens, and of no columns for the others."""
    if valid is None:
        return running
    nothing = start_running(len(valid), running.logit.shape[1], spec)
    return jax.tree.map(lambda x, none: jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, none), running, nothing)


def target_logit(hidden: Num[Array, "N D"], unembed: Array, ids: Int[Array, "N"], spec: Spec) -> Float[Array, "N"]:
    """The logit of one id a token, whichever device holds its column."""
    picked = gather_logit(hidden, unembed, ids, spec)
    return picked if spec.split.vocab is None else lax.psum(picked, spec.split.vocab)


def gather_logit(hidden: Num[Array, "N D"], unembed: Array, ids: Int[Array, "N"], spec: Spec) -> Float[Array, "N"]:
    """The logit of one id a token by a gathered dot product; 0 where the id is not among this device's columns."""
    embed, token_dim = spec.split.embed, spec.vocab_dim
    local = ids - first_column(unembed, spec)
    wanted = lax.all_gather(local, embed, tiled=True) if embed else local
    rows = jnp.take(unembed, wanted, axis=spec.vocab_dim, mode="clip")
    if embed:  # every device picked its slice of the width for the tokens of all; each gets the whole width of its own
        rows = lax.all_to_all(rows, embed, split_axis=token_dim, concat_axis=1 - token_dim, tiled=True)
    dot = "nd,dn->n" if spec.layout == "dv" else "nd,nd->n"
    picked = finish(jnp.einsum(dot, hidden, rows, preferred_element_type=jnp.float32), spec)
    return jnp.where((local >= 0) & (local < width(unembed, spec)), picked, 0.0)


def merge(running: Running, spec: Spec) -> Running:
    """Statistics of all columns from those of each device's columns."""
    axis = spec.split.vocab
    if axis is None:
        return running
    peak = lax.pmax(running.max, axis)
    shift = running.max - peak
    scale = jnp.exp(shift)
    top = lax.all_gather(running.top, axis, axis=1, tiled=True)
    return Running(
        peak,
        lax.psum(scale * running.total, axis),
        lax.psum(scale * (running.moment + running.total * shift), axis),
        lax.psum(running.above, axis),
        lax.top_k(top, spec.top_k, is_stable=False)[0] if spec.top_k else top,
        lax.psum(running.logit, axis),
    )


def statistics(running: Running, spec: Spec):
    """(lse, logit, (entropy, confidence, rank, top1, tail mass, max logit)); zeros where no column was seen."""
    seen = running.total > 0
    total = jnp.where(seen, running.total, 1.0)
    lse = jnp.where(seen, running.max, 0.0) + jnp.log(total)
    # The shifted form: lse - sum(p * z) would cancel digits where logits are large.
    entropy = jnp.log(total) - running.moment / total
    top = jnp.where(seen[:, None], running.top - lse[:, None], 0.0)
    rank = jnp.minimum(running.above + 1, spec.max_rank)
    tail = jnp.where(seen, 1.0 - jnp.exp(top).sum(1), 0.0)
    confidence = top.mean(1) if spec.top_k else jnp.zeros_like(lse)
    return lse, running.logit, (entropy, confidence, rank, running.above == 0, tail, jnp.where(seen, running.max, 0.0))
