"""Refuse a teacher's unusual traces: surprisal against that teacher's own running mean.

Removes exactly the difference *between* teachers, so it is no compatibility gate (measured: every teacher is accepted
at about the same rate and the pool stays broken); it finds outliers, such as corrupted traces, within a teacher.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def near_own_mean(
    trace_surprisal: Float[Array, "B T"],
    teacher_id: Int[Array, "B T"],
    baseline: Any,
    *,
    margin: float = 0.5,
) -> Bool[Array, "B T"]:
    """Keep a trace iff its mean content surprisal <= its own teacher's running mean + `margin`, in nats.

    `baseline` is the memory entry of that name (`mixdistill.memory.running`). A teacher that was never seen passes:
    otherwise it could not get a mean.
    """
    limit = jnp.where(baseline["num_updates"] > 0, baseline["value"] + margin, jnp.inf)
    return trace_surprisal <= limit[teacher_id]
