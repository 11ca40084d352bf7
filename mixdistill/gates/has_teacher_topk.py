"""Open where the teacher's top K was recorded: the distillation losses need it, and other tokens have NaN there."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def has_teacher_topk(teacher_tail_logprob: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """True where the tail's log-probability is a number; -inf is one: no tail."""
    return ~jnp.isnan(teacher_tail_logprob)
