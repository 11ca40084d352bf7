"""The vocabulary pass as one would write it down: all logits at once, `[..., V]`. Short and obvious; tests hold the
fast path against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from mixdistill.signals.vocabulary import VocabularyStats


def dense_stats(
    hidden: Num[Array, "..."],
    unembed: Num[Array, "a b"],
    ids: Int[Array, "..."],
    *,
    valid: Bool[Array, "..."] | None = None,
    top_k: int = 20,
    max_rank: int = 100,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    layout: str = "dv",
    num_valid_vocab: int | None = None,
) -> VocabularyStats:
    """As `vocabulary_pass`; every token is computed, `valid` or not."""
    del valid
    w = unembed if layout == "dv" else unembed.T
    z = jnp.einsum("...d,dv->...v", hidden, w, preferred_element_type=jnp.float32)
    z = z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)
    z = z / temperature
    if num_valid_vocab is not None:
        z = jnp.where(jnp.arange(z.shape[-1]) < num_valid_vocab, z, -jnp.inf)
    lse = jax.nn.logsumexp(z, axis=-1)
    logit = jnp.take_along_axis(z, ids, axis=-1)
    logp = jax.lax.stop_gradient(z - lse[..., None])
    p = jnp.exp(logp)
    top = jax.lax.top_k(logp, top_k)[0]
    target = jnp.take_along_axis(logp, ids[..., :1], axis=-1)
    # Its own column apart: compiled, it may be made twice and differ in the last bit.
    above = ((logp > target) & (jnp.arange(z.shape[-1]) != ids[..., :1])).sum(-1)
    return VocabularyStats(
        logit,
        lse,
        -jnp.where(p > 0, p * logp, 0.0).sum(-1),
        top.mean(-1),
        jnp.minimum(above + 1, max_rank),
        above == 0,
        1 - jnp.exp(top).sum(-1),
        jax.lax.stop_gradient(z.max(-1)),
    )
