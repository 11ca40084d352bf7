"""A teacher's recorded top K and all the rest as one bucket: K + 1 outcomes on which two distributions are compared.

The divergence of the buckets is at most that of the full distributions, and zero for equal ones; without the tail
bucket the student could move the mass that the record leaves out for nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOWEST = -30.0  # nats; the record is float16 and says -inf, or nearly, for what it cannot hold
SMALLEST_TAIL = 1e-6  # below it one minus the sum of K probabilities is only float32's rounding


def teacher_buckets(
    teacher_topk_logprob: Float[Array, "B T K"], teacher_tail_logprob: Float[Array, "B T"]
) -> Float[Array, "B T K+1"]:
    """The teacher's log-probabilities of the K tokens and of the tail, in nats."""
    both = jnp.concatenate([teacher_topk_logprob, teacher_tail_logprob[..., None]], axis=-1)
    return jnp.maximum(both.astype(jnp.float32), LOWEST)


def student_buckets(topk_logprob: Float[Array, "B T K"]) -> Float[Array, "B T K+1"]:
    """The student's, from its log-probabilities of the K tokens."""
    inside = jnp.minimum(jax.nn.logsumexp(topk_logprob, axis=-1), -SMALLEST_TAIL)
    return jnp.concatenate([topk_logprob, jnp.log(-jnp.expm1(inside))[..., None]], axis=-1)


def kl(log_p: Float[Array, "B T K"], log_q: Float[Array, "B T K"]) -> Float[Array, "B T"]:
    """KL(p || q) over the last axis, in nats."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def mixture(log_p: Float[Array, "..."], log_q: Float[Array, "..."], share: float) -> Float[Array, "..."]:
    """log(share * p + (1 - share) * q)."""
    return jnp.logaddexp(jnp.log(share) + log_p, jnp.log1p(-share) + log_q)
