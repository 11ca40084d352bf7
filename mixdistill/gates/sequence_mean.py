"""Sequence-mean normalisation: every trace counts as much, whatever its length.

An objective divides by tokens: a trace counts by its length, which is the token mean. This gate makes the same quotient
the mean over traces of each trace's mean over its tokens. Both are choices; long-winded teachers gain by the first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import run_sum


def sequence_mean(
    valid: Bool[Array, "B T"], trace_run: Int[Array, "B T"], *, length: float = 256.0
) -> Float[Array, "B T"]:
    """`length` / (completion tokens of the trace).

    `length` cancels when the objective divides; give about the usual number of tokens of a trace, so that
    `min_coverage`, a share of the tokens, keeps its meaning. A trace that another gate keeps in part counts in part.
    """
    return length / jnp.maximum(run_sum(valid, trace_run), 1.0)
