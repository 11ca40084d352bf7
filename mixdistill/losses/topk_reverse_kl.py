"""Reverse KL on the teacher's top K alone, corrected so that its minimum is still at equality (arXiv:2606.30406).

Without the last two terms a student lowers the sum by taking mass away from the K tokens altogether. Needs shards with
the teacher's top K; close tokens without a record by the gate `has_teacher_topk`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mixdistill.losses.buckets import LOWEST


def topk_reverse_kl(
    topk_logprob: Float[Array, "B T K"], teacher_topk_logprob: Float[Array, "B T K"]
) -> Float[Array, "B T"]:
    """Sum over the K tokens of p_S log(p_S / p_T) - p_S + p_T, per token, in nats; never negative."""
    teacher = jnp.maximum(teacher_topk_logprob.astype(jnp.float32), LOWEST)
    p = jnp.exp(topk_logprob)
    return (p * (topk_logprob - teacher) - p + jnp.exp(teacher)).sum(-1)
