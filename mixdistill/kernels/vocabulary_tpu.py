"""The forward statistics of the vocabulary pass as a Pallas TPU kernel: they are made of each tile of logits while it
is in fast memory, so logits never reach HBM.

Every lane keeps its own running statistics of the columns that fall on it (column modulo 128), so that no tile needs a
reduction across lanes; the 128 are merged outside. The largest logits are not selected here: of each lane of each few
tiles the four largest leave, enough for a selection outside that knows when it may have missed one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Num

LANES = 128
DEPTH = 4  # candidates for the largest logits from each lane of each run of tiles
RUN = 8  # tiles
LOWEST = -1e30  # a running maximum that no logit is below, finite so that no difference of maxima is a NaN
BLOCK_TOKENS = 512
WEIGHT_BYTES = 2**24  # of one tile of the unembedding; two of them and a tile of logits share the fast memory
VMEM_BYTES = 100 * 2**20


class Lanes(NamedTuple):
    """Statistics of each token by lane, and the largest logits of each lane of each run (width 0: not wanted)."""

    max: Float[Array, "N 128"]
    total: Float[Array, "N 128"]  # sum of exp(z - max)
    moment: Float[Array, "N 128"]  # sum of exp(z - max) * (z - max)
    above: Float[Array, "N 128"]  # columns with a logit above the target's, the target's own column left out
    candidates: Float[Array, "N runs*DEPTH*128"]


class Static(NamedTuple):
    """What the kernel is compiled for."""

    vocab_dim: int
    soft_cap: float | None
    temperature: float
    columns: int  # in a tile
    candidates: bool


def lane_statistics(
    hidden: Num[Array, "N D"],
    unembed: Num[Array, "a b"],
    target: Int[Array, "N"],
    target_logit: Float[Array, "N"],
    num_tokens: Int[Array, ""] | int,
    num_columns: Int[Array, ""] | int,
    *,
    vocab_dim: int,
    soft_cap: float | None,
    temperature: float,
    candidates: bool,
    interpret: bool,
) -> Lanes:
    """Statistics of the first `num_tokens` tokens over the first `num_columns` columns; later rows are garbage.

    `target` counts from the first column of `unembed` and may lie outside; the vocabulary is dimension `vocab_dim`.
    """
    embed, vocab = hidden.shape[1], unembed.shape[vocab_dim]
    block = min(BLOCK_TOKENS, -(-len(hidden) // 16) * 16)
    columns = block_columns(embed, vocab, unembed.dtype.itemsize)
    tiles = pl.cdiv(vocab, columns)
    rows = pl.cdiv(len(hidden), block) * block
    hidden, target, target_logit = (
        jnp.pad(x, [(0, rows - len(x)), (0, 0)]) for x in (hidden, target[:, None], target_logit[:, None])
    )

    def row(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((block, width), lambda i, j, *_: (i, 0))

    weight = (embed, columns) if vocab_dim == 1 else (columns, embed)
    place = (lambda i, j, *_: (0, j)) if vocab_dim == 1 else (lambda i, j, *_: (j, 0))
    out_specs, out_shape = [row(LANES)] * 4, [jax.ShapeDtypeStruct((rows, LANES), jnp.float32)] * 4
    if candidates:
        # lax.div and lax.rem: `//` and `%` ask which TPU this is, and a compilation ahead of time has none.
        out_specs.append(pl.BlockSpec((block, DEPTH * LANES), lambda i, j, *_: (i, lax.div(j, RUN))))
        out_shape.append(jax.ShapeDtypeStruct((rows, pl.cdiv(tiles, RUN) * DEPTH * LANES), jnp.float32))
    static = Static(vocab_dim, soft_cap, temperature, columns, candidates)
    outputs = pl.pallas_call(
        functools.partial(_kernel, static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(-(-num_tokens // block), tiles),  # dynamic: blocks without a live token are not visited
            in_specs=[row(embed), pl.BlockSpec(weight, place), row(1), row(1)],
            out_specs=out_specs,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
    )(jnp.asarray(num_columns, jnp.int32)[None], hidden, unembed, target, target_logit)
    lanes = outputs if candidates else (*outputs, jnp.zeros((rows, 0), jnp.float32))
    return Lanes(*lanes)


def block_columns(embed: int, vocab: int, itemsize: int) -> int:
    """Columns of a tile: a power of two of lanes that fits, no more than there are."""
    most = max(WEIGHT_BYTES // (embed * itemsize * LANES), 1)
    return LANES * min(2 ** (most.bit_length() - 1), 16, pl.cdiv(vocab, LANES))


def _kernel(static: Static, num_columns, hidden, unembed, target, target_logit, peak, total, moment, above, *best):
    """One tile of logits. The outputs of a block of tokens stay in fast memory while its tiles pass by."""
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _():
        peak[...] = jnp.full_like(peak, LOWEST)
        for x in (total, moment, above):
            x[...] = jnp.zeros_like(x)

    z = _logits(static, hidden[...], unembed[...])
    start = j * static.columns
    lane = lax.broadcasted_iota(jnp.int32, (z.shape[0], LANES), 1)
    parts = []
    for i in range(0, static.columns, LANES):
        # Beyond the last column lies whatever the memory held.
        parts.append(jnp.where(start + i + lane < num_columns[0], z[:, i : i + LANES], -jnp.inf))
    highest = functools.reduce(jnp.maximum, parts, peak[...])
    shift = peak[...] - highest
    scale = jnp.exp(shift)
    moments = scale * (moment[...] + total[...] * shift)
    totals, counts = scale * total[...], above[...]
    for i, part in enumerate(parts):
        below = jnp.maximum(part - highest, LOWEST)  # -inf * 0 of a masked column would be a NaN
        weight = jnp.exp(below)
        totals, moments = totals + weight, moments + weight * below
        column = start + i * LANES + lane
        counts += jnp.where((part > target_logit[...]) & (column != target[...]), 1.0, 0.0)
    peak[...], total[...], moment[...], above[...] = highest, totals, moments, counts
    if static.candidates:
        _sort_in(best[0], parts, j)


def _logits(static: Static, hidden, unembed):
    contract = (((1,), (1 - static.vocab_dim,)), ((), ()))
    z = lax.dot_general(hidden, unembed, contract, preferred_element_type=jnp.float32)
    z = z if static.soft_cap is None else static.soft_cap * jnp.tanh(z / static.soft_cap)
    return z if static.temperature == 1.0 else z / static.temperature


def _sort_in(best, parts: list[Any], j) -> None:
    """Keep the `DEPTH` largest values of each lane, in order."""

    @pl.when(lax.rem(j, RUN) == 0)
    def _():
        best[...] = jnp.full_like(best, -jnp.inf)

    places = [best[:, i * LANES : (i + 1) * LANES] for i in range(DEPTH)]
    for part in parts:
        for i, value in enumerate(places):
            places[i], part = jnp.maximum(value, part), jnp.minimum(value, part)
    best[...] = jnp.concatenate(places, axis=1)
