"""Decoding: one jitted loop over a cache, prompts of different lengths side by side, greedy or drawn.

The token that row r draws at its n-th place depends on (seed, train_step, r, n) alone, so a sample is the same on every
mesh and in every batch size, and a resumed run draws what the interrupted one would have drawn.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mixdistill.errors import UserError
from mixdistill.generation.policy import GREEDY, Policy, draw, log_probabilities
from mixdistill.students.student import Cache, Params, Student, logits

NARROWEST = 32  # prompts are padded to 32, 64, 128 ... tokens, so that few lengths are ever compiled


class Completion(NamedTuple):
    """What was generated for each row; after the end token the rest is padding."""

    tokens: Int[Array, "B N"]
    logprobs: Float[Array, "B N"]  # of each token under the sampling policy, nats, float32; 0 in the padding
    confidence: Float[Array, "B N"]  # DeepConf's C (arXiv:2508.15260), nats; 0 in the padding; [B, 0] if not asked for
    lengths: Int[Array, "B"]  # tokens generated, the end token included


class Generated(NamedTuple):
    """One completion on the host, its end token included if it came."""

    tokens: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float32 [n], nats, under the sampling policy
    ended: bool  # False: cut off at `max_new`, or stopped for low confidence
    confidence: np.ndarray  # float32 [n], or [0]


class LowConfidence(NamedTuple):
    """Stop a row as soon as the mean confidence of its last `window` tokens is below `threshold` (DeepConf online)."""

    window: int
    threshold: float  # nats; -inf only measures
    top_k: int = 20


def sample(
    student: Student,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    lengths: Int[Array, "B"] | np.ndarray,
    *,
    max_new: int,
    eos_id: int,
    pad_id: int = 0,
    policy: Policy = GREEDY,
    seed: int = 0,
    train_step: int = 0,
    rows: Int[Array, "B"] | np.ndarray | None = None,
    most: Int[Array, "B"] | np.ndarray | None = None,
    stop: LowConfidence | None = None,
) -> Completion:
    """Tokens drawn from `policy`, until every row has ended or has `max_new` tokens.

    `prompts` stand at the left of their rows, `lengths` tokens each (at least one). `rows` are the numbers by which
    rows draw (default 0, 1, ...), `most` the tokens that each may have where that is less than `max_new`. Prompts and
    params may be sharded; the loop follows them. Compiled once for each (B, P, max_new, policy). A student without a
    cache recomputes the whole row for every token.
    """
    if prompts.shape[1] == 0 or max_new < 1:
        raise UserError(f"prompts of {prompts.shape[1]} tokens, max_new={max_new}: both must be at least 1")
    # Only functions and numbers remain of the student: they are hashable, and jit recognises them.
    model = student._replace(init=None, axes=None)  # type: ignore[arg-type]
    rows = jnp.arange(prompts.shape[0]) if rows is None else jnp.asarray(rows)
    most = jnp.full(prompts.shape[0], max_new) if most is None else jnp.asarray(most)
    key = jax.random.fold_in(jax.random.key(seed), train_step)
    window, top_k = (stop.window, min(stop.top_k, student.vocab_size)) if stop else (0, 0)
    threshold = stop.threshold if stop else 0.0
    place = (jnp.asarray(prompts), jnp.asarray(lengths), rows, most, key, eos_id, pad_id, threshold)
    return _decode(model, params, *place, max_new=max_new, policy=policy, window=window, top_k=top_k)


def greedy(student: Student, params: Params, prompts, lengths, **settings) -> Completion:
    """`sample` of the most likely token, again and again."""
    return sample(student, params, prompts, lengths, policy=GREEDY, **settings)


def complete(
    student: Student,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    eos_id: int,
    rows: int = 256,
    policy: Policy = GREEDY,
    seed: int = 0,
    train_step: int = 0,
    first: int = 0,
    stop: LowConfidence | None = None,
) -> list[Generated]:
    """`sample` for a list of prompts; prompt i draws as row `first` + i.

    Prompts of about one length are decoded together, `rows` at a time: padded to 32, 64, 128 ... tokens, the number of
    rows to a power of two. Raises `UserError` for an empty prompt.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths.all():
        raise UserError(f"prompt {int(np.argmin(lengths))} of {len(prompts)} is empty; a prompt needs a token or more")
    widths = np.array([max(NARROWEST, 1 << (int(length) - 1).bit_length()) for length in lengths], int)
    settings = {"max_new": max_new, "eos_id": eos_id, "policy": policy, "seed": seed, "train_step": train_step}
    results: dict[int, Generated] = {}
    for width in sorted(set(widths.tolist())):
        of_width = np.flatnonzero(widths == width)
        together = min(rows, 1 << (len(of_width) - 1).bit_length())
        for start in range(0, len(of_width), together):
            # The last prompt fills the last batch.
            place = of_width[np.minimum(np.arange(start, start + together), len(of_width) - 1)]
            tokens = padded([prompts[i] for i in place], width)
            drawn = sample(student, params, tokens, lengths[place], rows=first + place, stop=stop, **settings)
            batch = jax.device_get(drawn)
            results |= {int(i): generated(batch, row, eos_id) for row, i in enumerate(place)}
    return [results[i] for i in range(len(prompts))]


def padded(prompts: Sequence[Sequence[int]], width: int) -> Int[np.ndarray, "B P"]:
    """Prompts at the left of rows of `width` tokens."""
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens


def generated(batch: Completion, row: int, eos_id: int) -> Generated:
    """One row of a completion that is on the host, without its padding."""
    kept = slice(0, int(batch.lengths[row]))
    tokens, logprobs, confidence = (np.asarray(array[row, kept]) for array in batch[:3])
    return Generated(tokens, logprobs, bool((tokens[-1:] == eos_id).any()), confidence)


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
    completion: Completion
    done: Array  # bool [B]
    last: Float[Array, "B D"]  # hidden state from which the next token follows
    cache: object


@functools.partial(jax.jit, static_argnames=("model", "max_new", "policy", "window", "top_k"))
def _decode(
    model: Student, params: Params, prompts, prompt_lengths, rows, most, key, eos_id, pad_id, threshold,
    *, max_new: int, policy: Policy, window: int, top_k: int,
) -> Completion:  # fmt: skip
    num_rows, width = prompts.shape
    cache = model.cache or recomputing_cache(model)
    # Right-aligned: every row then writes the same slot, and padding (a negative position) lies in front.
    positions = jnp.arange(width) - (width - prompt_lengths[:, None])
    prompts = jnp.take_along_axis(prompts, jnp.maximum(positions, 0), axis=1)
    hidden, filled = cache.extend(params, cache.init_cache(num_rows, width + max_new), prompts, positions)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)

    def step(loop: _Loop) -> _Loop:
        count, done = loop.count, loop.done
        raw = logits(model, params, loop.last)
        scores = log_probabilities(raw, policy)
        best = draw(scores, policy, jax.vmap(jax.random.fold_in, (0, None))(row_keys, count))
        token = jnp.where(done, pad_id, best)
        logprob = jnp.where(done, 0.0, jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0])
        said = loop.completion
        said = said._replace(
            tokens=jax.lax.dynamic_update_index_in_dim(said.tokens, token, count, axis=1),
            logprobs=jax.lax.dynamic_update_index_in_dim(said.logprobs, logprob, count, axis=1),
            lengths=said.lengths + ~done,
        )
        ended = done | (best == eos_id) | (count + 1 >= most)
        if top_k:
            sure = jnp.where(done, 0.0, -jax.lax.top_k(jax.nn.log_softmax(raw), top_k)[0].mean(-1))
            confidence = jax.lax.dynamic_update_index_in_dim(said.confidence, sure, count, axis=1)
            said = said._replace(confidence=confidence)
            ended |= _unsure(confidence, count, window, threshold)
        hidden, filled = cache.extend(params, loop.cache, token[:, None], (prompt_lengths + count)[:, None])
        return _Loop(count + 1, said, ended, hidden[:, -1], filled)

    empty = Completion(
        tokens=jnp.full((num_rows, max_new), pad_id, jnp.int32),
        logprobs=jnp.zeros((num_rows, max_new), jnp.float32),
        confidence=jnp.zeros((num_rows, max_new if top_k else 0), jnp.float32),
        lengths=jnp.zeros(num_rows, jnp.int32),
    )
    start = _Loop(jnp.zeros((), jnp.int32), empty, jnp.zeros(num_rows, bool), hidden[:, -1], filled)
    return jax.lax.while_loop(lambda loop: (loop.count < max_new) & ~loop.done.all(), step, start).completion


def _unsure(confidence: Float[Array, "B N"], count: Int[Array, ""], window: int, threshold) -> Array:
    """bool [B]: the last `window` tokens, up to place `count`, are all there and their mean is below `threshold`."""
    place = jnp.arange(confidence.shape[1])
    inside = (place <= count) & (place > count - window)
    mean = jnp.where(inside, confidence, 0.0).sum(-1) / window
    return (count + 1 >= window) & (mean < threshold)
