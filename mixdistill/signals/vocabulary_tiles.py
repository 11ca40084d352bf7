"""Tiles of the vocabulary pass: logits of some tokens at some columns, and how one device reaches its columns.

Everything in the `vocabulary_*` files sees one device's part: `unembed` may be a slice of the vocabulary, of the width,
or of both. Letters: N tokens, D width, V columns of the slice, M ids, b tokens in a tile, v columns in a tile.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

Layout = Literal["dv", "vd"]


class Tiles(NamedTuple):
    """Tile sizes: pure performance knobs, the result differs by summation order alone."""

    forward_tokens: int
    forward_vocab: int | None  # None: the whole vocabulary in one tile
    backward_tokens: int
    backward_vocab: int


class Split(NamedTuple):
    """Names of the mesh axes that split each dimension; all empty on one device."""

    tokens: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()  # the width of the unembedding; some of `tokens`, as in fully sharded data parallelism
    vocab: str | None = None


class Spec(NamedTuple):
    """What is static about one pass. Hashable, so that it can be a static argument."""

    top_k: int
    max_rank: int
    soft_cap: float | None
    temperature: float
    layout: Layout
    num_valid_vocab: int | None  # columns from here on only pad; None: there are none
    tiles: Tiles
    backward: str
    implementation: str
    platform: str
    split: Split

    @property
    def vocab_dim(self) -> int:
        """Which dimension of the unembedding is the vocabulary."""
        return 1 if self.layout == "dv" else 0


def width(unembed: Array, spec: Spec) -> int:
    """Columns of the vocabulary that this device holds."""
    return unembed.shape[spec.vocab_dim]


def first_column(unembed: Array, spec: Spec) -> Int[Array, ""] | int:
    """The number of this device's first column."""
    return 0 if spec.split.vocab is None else lax.axis_index(spec.split.vocab) * width(unembed, spec)


def columns(unembed: Array, start: Int[Array, ""] | int, size: int, spec: Spec) -> Array:
    """`size` of this device's columns from `start`, at full width: where the width is split they are gathered."""
    part = lax.dynamic_slice_in_dim(unembed, start, size, spec.vocab_dim)
    return lax.all_gather(part, spec.split.embed, axis=1 - spec.vocab_dim, tiled=True) if spec.split.embed else part


def put_columns(gradient: Array, part: Float[Array, "a b"], start: Int[Array, ""] | int, spec: Spec) -> Array:
    """Write the gradient of the columns from `start`, added in float32 over the devices that hold other tokens."""
    if spec.split.embed:
        part = lax.psum_scatter(part, spec.split.embed, scatter_dimension=1 - spec.vocab_dim, tiled=True)
    if rest := tuple(axis for axis in spec.split.tokens if axis not in spec.split.embed):
        part = lax.psum(part, rest)
    return lax.dynamic_update_slice_in_dim(gradient, part.astype(gradient.dtype), start, spec.vocab_dim)


def over_vocabulary(body: Callable[[Any, Any, int], Any], carry: Any, num_columns: int, size: int) -> Any:
    """`carry = body(carry, start, span)` for tiles of `size` columns and, as a tile of its own, the remainder.

    The number of tiles is static, so `body` may hold collectives. No padded copy of the unembedding is needed.
    """
    full, rest = divmod(num_columns, size)
    if full == 1:
        carry = body(carry, 0, size)
    elif full:
        carry = lax.fori_loop(0, full, lambda j, carry: body(carry, j * size, size), carry)
    return body(carry, full * size, rest) if rest else carry


def logits(hidden: Num[Array, "b D"], part: Array, start: Int[Array, ""] | int, spec: Spec) -> Float[Array, "b v"]:
    """Float32 logits at columns `start, start + 1, ...`, which `part` holds: `finish`ed, -inf where they only pad."""
    raw = lax.dot_general(hidden, part, (((1,), (1 - spec.vocab_dim,)), ((), ())), preferred_element_type=jnp.float32)
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


def live_first(live: Array, *arrays: Array, multiple: int) -> tuple[Array, ...]:
    """(order, arrays with the `live` rows first and rows of zeros at the end, up to a `multiple`)."""
    order = jnp.argsort(~live, stable=True)
    return order, *(pad(x[order], multiple) for x in arrays)


def restore(x: Array, order: Int[Array, "N"]) -> Array:
    """Rows of `x` back to where `live_first` took them from; rows of padding are dropped."""
    return jnp.zeros((len(order), *x.shape[1:]), x.dtype).at[order].set(x[: len(order)], unique_indices=True)


def tile(x: Array, i: Int[Array, ""] | int, size: int) -> Array:
    """Rows `i * size` to `(i + 1) * size`."""
    return lax.dynamic_slice_in_dim(x, i * size, size, 0)


def put_tile(x: Array, rows: Array, i: Int[Array, ""] | int) -> Array:
    """Write rows `i * len(rows)` to `(i + 1) * len(rows)`."""
    return lax.dynamic_update_slice_in_dim(x, rows, i * len(rows), 0)


def pad(x: Array, multiple: int) -> Array:
    """Rows of zeros at the end, up to a multiple."""
    return pad_to(x, x.shape[0] + -x.shape[0] % multiple)


def pad_to(x: Array, num_rows: int) -> Array:
    """Rows of zeros at the end, up to `num_rows`."""
    return jnp.pad(x, [(0, num_rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
