"""Greedy decoding: one jitted loop over a cache, prompts of different lengths side by side."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mixdistill.errors import UserError
from mixdistill.students.student import Cache, Params, Student, logits

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few lengths are ever compiled


class Completion(NamedTuple):
    """What was generated for each row; after the end token the rest is padding."""

    tokens: Int[Array, "B N"]
    logprobs: Float[Array, "B N"]  # log-probability of each token, nats, float32; 0 in the padding
    lengths: Int[Array, "B"]  # tokens generated, the end token included


class Generated(NamedTuple):
    """One completion on the host, its end token included if it came."""

    tokens: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float32 [n], nats
    ended: bool  # False: cut off at `max_new`


def greedy(
    student: Student,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    lengths: Int[Array, "B"] | np.ndarray,
    *,
    max_new: int,
    eos_id: int,
    pad_id: int = 0,
) -> Completion:
    """The most likely token, again and again, until every row has ended or has `max_new` tokens.

    `prompts` stand at the left of their rows, `lengths` tokens each (at least one). Compiled once for each (B, P,
    max_new). A student without a cache recomputes the whole row for every token.
    """
    if prompts.shape[1] == 0 or max_new < 1:
        raise UserError(f"prompts of {prompts.shape[1]} tokens, max_new={max_new}: both must be at least 1")
    # Only functions and numbers remain of the student: they are hashable, and jit recognises them.
    model = student._replace(init=None, axes=None)  # type: ignore[arg-type]
    return _greedy(model, params, jnp.asarray(prompts), jnp.asarray(lengths), eos_id, pad_id, max_new)


def complete(
    student: Student,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    eos_id: int,
    rows: int = 256,
) -> list[Generated]:
    """`greedy` for a list of prompts, `rows` at a time, all in one shape: the longest prompt rounded up to a multiple
    of 32 tokens, the number of rows to a power of two. Raises `UserError` for an empty prompt."""
    if not prompts:
        return []
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths.all():
        raise UserError(f"prompt {int(np.argmin(lengths))} of {len(prompts)} is empty; a prompt needs a token or more")
    rows = min(rows, 1 << (len(prompts) - 1).bit_length())
    width = -(-int(lengths.max()) // PROMPT_BUCKET) * PROMPT_BUCKET
    results = []
    for start in range(0, len(prompts), rows):
        place = np.minimum(np.arange(start, start + rows), len(prompts) - 1)  # the last prompt fills the last batch
        tokens = np.zeros((rows, width), np.int32)
        for row, i in enumerate(place):
            tokens[row, : lengths[i]] = prompts[i]
        batch = jax.device_get(greedy(student, params, tokens, lengths[place], max_new=max_new, eos_id=eos_id))
        for row in range(min(rows, len(prompts) - start)):
            count = batch.lengths[row]
            new = batch.tokens[row, :count]
            results.append(Generated(new, batch.logprobs[row, :count], bool(new[-1] == eos_id)))
    return results


def recomputing_cache(student: Student) -> Cache:
    """A cache that only remembers tokens: for students that have none, and the reference for those that have."""

    def init_cache(batch: int, length: int, dtype: str | None = None):
        del dtype
        return jnp.zeros((batch, length), jnp.int32), jnp.full((batch, length), -1, jnp.int32), jnp.zeros((), jnp.int32)

    def extend(params: Params, cache, tokens: Int[Array, "B S"], positions: Int[Array, "B S"]):
        all_tokens, all_positions, filled = cache
        all_tokens = jax.lax.dynamic_update_slice(all_tokens, tokens, (0, filled))
        all_positions = jax.lax.dynamic_update_slice(all_positions, positions, (0, filled))
        batch = {
            "tokens": all_tokens,
            "segment_id": (all_positions >= 0).astype(jnp.int32),
            "position": jnp.maximum(all_positions, 0),
        }
        hidden = jax.lax.dynamic_slice_in_dim(student.hidden(params, batch), filled, tokens.shape[1], axis=1)
        return hidden, (all_tokens, all_positions, filled + tokens.shape[1])

    return Cache(init_cache, extend)


class _Loop(NamedTuple):
    count: Int[Array, ""]
    tokens: Int[Array, "B N"]
    logprobs: Float[Array, "B N"]
    done: Array  # bool [B]
    lengths: Int[Array, "B"]
    last: Float[Array, "B D"]  # hidden state from which the next token follows
    cache: object


@functools.partial(jax.jit, static_argnames=("model", "max_new"))
def _greedy(model: Student, params: Params, prompts, prompt_lengths, eos_id, pad_id, max_new: int) -> Completion:
    rows, width = prompts.shape
    cache = model.cache or recomputing_cache(model)
    # Right-aligned: every row then writes the same slot, and padding (a negative position) lies in front.
    positions = jnp.arange(width) - (width - prompt_lengths[:, None])
    prompts = jnp.take_along_axis(prompts, jnp.maximum(positions, 0), axis=1)
    hidden, filled = cache.extend(params, cache.init_cache(rows, width + max_new), prompts, positions)

    def step(loop: _Loop) -> _Loop:
        scores = jax.nn.log_softmax(logits(model, params, loop.last))
        best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        token = jnp.where(loop.done, pad_id, best)
        logprob = jnp.where(loop.done, 0.0, jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0])
        hidden, filled = cache.extend(params, loop.cache, token[:, None], (prompt_lengths + loop.count)[:, None])
        return _Loop(
            count=loop.count + 1,
            tokens=jax.lax.dynamic_update_index_in_dim(loop.tokens, token, loop.count, axis=1),
            logprobs=jax.lax.dynamic_update_index_in_dim(loop.logprobs, logprob, loop.count, axis=1),
            done=loop.done | (best == eos_id),
            lengths=loop.lengths + ~loop.done,
            last=hidden[:, -1],
            cache=filled,
        )

    start = _Loop(
        count=jnp.zeros((), jnp.int32),
        tokens=jnp.full((rows, max_new), pad_id, jnp.int32),
        logprobs=jnp.zeros((rows, max_new), jnp.float32),
        done=jnp.zeros(rows, bool),
        lengths=jnp.zeros(rows, jnp.int32),
        last=hidden[:, -1],
        cache=filled,
    )
    loop = jax.lax.while_loop(lambda loop: (loop.count < max_new) & ~loop.done.all(), step, start)
    return Completion(loop.tokens, loop.logprobs, loop.lengths)
