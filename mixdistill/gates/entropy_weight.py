"""Entropy-aware fine-tuning (EAFT-style): the surer the student, the less a token of a teacher moves it.

So a confident student that meets another form is not torn out of its own. Methods of this kind (cf. arXiv:2603.07079)
differ in the function of the entropy; the formula could not be verified, this one is the plainest, and no parity is
claimed.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

TWENTY_WAYS = 2.9957  # nats: ln 20


def entropy_weight(entropy: Float[Array, "B T"], *, full: float = TWENTY_WAYS) -> Float[Array, "B T"]:
    """min(1, H / full): the student's entropy at the token as a share of `full` nats."""
    return jnp.clip(entropy / full, 0.0, 1.0)
