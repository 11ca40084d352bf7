"""Student: a language model as pure functions over a nested dict of parameters. Nothing outside this package needs to
know how it was written; `from_module` makes one out of any flax NNX module."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mixdistill.students.config import DecoderConfig

Params = dict[str, Any]  # nested dict of arrays
Axes = dict[str, Any]  # the same tree, with a tuple of logical axis names (or None) for each array
Key = jax.Array
TokenBatch = Mapping[str, Any]  # a Batch: `hidden` reads tokens, segment_id and position alone


class Cache(NamedTuple):
    """Decoding without recomputing the past."""

    init_cache: Callable[..., Any]  # (batch, length, dtype=None) -> pytree with room for `length` tokens a row
    # (params, cache, tokens int32[B, S], positions int32[B, S]) -> (hidden [B, S, D], cache). A negative position marks
    # padding: nothing attends to it. All rows fill the same slots, so prompts of different lengths are right-aligned.
    extend: Callable[[Params, Any, Int[Array, "B S"], Int[Array, "B S"]], tuple[Float[Array, "B S D"], Any]]


class Student(NamedTuple):
    """A model. Build it once: the functions are the identity under which jax caches compiled programs."""

    init: Callable[[Key], Params]
    hidden: Callable[[Params, TokenBatch], Float[Array, "B T D"]]
    unembed: Callable[[Params], Float[Array, "..."]]  # [D, V], or [V, D] where unembed_layout is "vd"; never copied
    axes: Axes
    vocab_size: int
    soft_cap: float | None = None  # logits become soft_cap * tanh(logits / soft_cap)
    unembed_layout: Literal["dv", "vd"] = "dv"
    cache: Cache | None = None
    config: DecoderConfig | None = None  # of a decoder; None for a foreign module


def logits(student: Student, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """All logits in float32, soft cap applied. For decoding and tests: losses go through the vocabulary pass."""
    spec = "...d,dv->...v" if student.unembed_layout == "dv" else "...d,vd->...v"
    raw = jnp.einsum(spec, hidden, student.unembed(params), preferred_element_type=jnp.float32)
    return raw if student.soft_cap is None else student.soft_cap * jnp.tanh(raw / student.soft_cap)


def batch_of(tokens: Int[Array, "B T"]) -> dict[str, Int[Array, "B T"]]:
    """The batch of unpacked rows: one segment each, positions from 0, no padding."""
    return {
        "tokens": tokens,
        "segment_id": jnp.ones_like(tokens),
        "position": jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape),
    }
