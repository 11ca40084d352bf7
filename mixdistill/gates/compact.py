"""COMPACT-style weights: a trace counts more if teachers agree with it, it leads to the answer, and it is likely.

The three signals are those of arXiv:2601.13992; its formulas could not be read, so their combination here (a weighted
sum under a softmax) is ours, and no parity is claimed. `trace_consensus` (agreement with the problem's other traces)
and `trace_answer_jump` (how many nats the trace adds to the answer's log-probability: two more forwards) are
sidecar fields; receptivity is the trace's own surprisal, which conflicting teachers pass.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import batch_wide, run_start


@batch_wide
def compact(
    trace_consensus: Float[Array, "B T"],
    trace_answer_jump: Float[Array, "B T"],
    trace_surprisal: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    consensus: float = 1.0,
    jump: float = 1.0,
    receptivity: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, "B T"]:
    """n softmax(score / temperature) over the n traces of the microbatch: the mean weight of a trace is 1.

    score = consensus * trace_consensus + jump * trace_answer_jump - receptivity * trace_surprisal. A trace whose score
    is not finite has weight 0.
    """
    score = consensus * trace_consensus + jump * trace_answer_jump - receptivity * trace_surprisal
    usable = jnp.isfinite(score)
    counted = run_start(trace_run, valid) & usable
    logit = jnp.where(usable, score, 0.0).astype(jnp.float32) / temperature
    height = jnp.max(jnp.where(counted, logit, -jnp.inf), initial=-1e30)
    total = jnp.where(counted, jnp.exp(logit - height), 0.0).sum()
    weight = counted.sum() * jnp.exp(jnp.minimum(logit - height, 0.0)) / jnp.where(total > 0, total, 1.0)
    return jnp.where(usable, weight, 0.0)
