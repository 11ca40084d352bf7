"""PACED: weigh a problem by how often the student solves it, most where it sometimes does (arXiv:2603.11178).

Costs rollouts of the student, counted beforehand: `pass_rate` is a sidecar field. Only the kernel p^a (1 - p)^b is
taken from the paper's abstract; its exponents are not known here, so no parity is claimed.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def paced(pass_rate: Float[Array, "B T"], *, a: float = 1.0, b: float = 1.0) -> Float[Array, "B T"]:
    """p^a (1 - p)^b, divided by its largest value, which is at p = a / (a + b). `a` and `b` are positive."""
    p = jnp.clip(pass_rate.astype(jnp.float32), 0.0, 1.0)
    peak = (a / (a + b)) ** a * (b / (a + b)) ** b
    return p**a * (1 - p) ** b / peak
