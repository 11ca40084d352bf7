"""Dynamic fine-tuning: weigh each token by the student's own probability of it (arXiv:2508.05629).

Takes the 1/p out of the gradient of cross entropy, so that implausible tokens no longer dominate. The authors say that
it is not better everywhere; early in training from scratch it silences nearly everything.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def dft(label_logprob: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """p(target), held fixed: a gate is never differentiated. Use it with `Objective(normalise="valid")` to leave the
    step as small as the formula makes it."""
    return jnp.exp(label_logprob)
