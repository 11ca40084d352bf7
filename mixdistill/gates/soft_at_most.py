"""Any score as a soft gate: `use(soft_at_most, score=trace_surprisal, threshold=1.0, width=0.2)`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_at_most(score: Float[Array, "B T"], *, threshold: float, width: float) -> Float[Array, "B T"]:
    """sigmoid((threshold - score) / width): 1 far below the threshold, 1/2 at it, 0 far above; `width` in the score's
    unit. A negative width turns it round."""
    return jax.nn.sigmoid((threshold - score.astype(jnp.float32)) / width)
