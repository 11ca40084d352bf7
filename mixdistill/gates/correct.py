"""Correctness: learn from traces whose answer was verified."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def correct(trace_correct: Float[Array, "B T"], *, wrong: float = 0.0, ungraded: float = 1.0) -> Float[Array, "B T"]:
    """1 for a trace with a right answer, `wrong` for one with a wrong answer, `ungraded` where nobody knows.

    `trace_correct` is a batch field: 1, 0 or NaN, at every token of the trace. Measured elsewhere: correctness predicts
    little about what a student learns from a trace (|Spearman| 0.33 in arXiv:2601.14249).
    """
    weight = jnp.where(trace_correct > 0.5, 1.0, wrong)
    return jnp.where(jnp.isnan(trace_correct), ungraded, weight)
