"""Step contrast: imitate the good reasoning steps of a trace and unlearn its bad ones.

There is no published formula under this name: it is cross entropy on good steps and unlikelihood (arXiv:1908.04319) on
bad ones, step by step. `step_quality` is a sidecar field: 1 for a good step, 0 for a bad one, or a judge's probability.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

SUREST = -1e-6  # nats; -log(1 - p) and its gradient stop growing at p = 1 - 1e-6


def step_contrast(label_logprob: Float[Array, "B T"], step_quality: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """-q log p(target) - (1 - q) log(1 - p(target)) per token, in nats; q is the quality of the token's step."""
    quality = step_quality.astype(jnp.float32)
    otherwise = jnp.log(-jnp.expm1(jnp.minimum(label_logprob, SUREST)))
    return -quality * label_logprob - (1 - quality) * otherwise
