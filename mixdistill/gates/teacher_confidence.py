"""Teacher-confidence gate: mask the reasoning steps in which the teacher itself was least sure of its words.

Reads the log-probabilities that the teacher recorded of its own tokens: no forward at all. A teacher that recorded none
passes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import batch_wide, run_start
from mixdistill.signals.steps import quantile as value_at


@batch_wide
def teacher_confidence(
    step_teacher_logprob: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    *,
    quantile: float = 0.1,
    at_least: float = float("-inf"),
) -> Bool[Array, "B T"]:
    """Close the share `quantile` of the recorded steps with the lowest mean log-probability, and every step below
    `at_least` nats a token. Every recorded step counts once (cf. arXiv:2508.15260, there of the generating model)."""
    silent = jnp.isnan(step_teacher_logprob)
    limit = value_at(step_teacher_logprob, run_start(step_run, valid) & ~silent, quantile)
    return silent | ((step_teacher_logprob >= limit) & (step_teacher_logprob >= at_least))
