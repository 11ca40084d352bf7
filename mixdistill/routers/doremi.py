"""DoReMi: more of the teachers on which the student is furthest behind a reference (arXiv:2305.10429).

Teachers stand for the paper's domains. It needs each token's log-probability under a reference student (a sidecar) and
`Objective(watch=(excess_loss,))`. Where teachers conflict, what is far behind is what is being torn apart: unmeasured.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally


def doremi(*, rate: float = 1.0, floor: float = 1e-4, every: int = 10, tally: str = "teacher/excess_loss") -> Memory:
    """w_k <- w_k exp(rate * e_k), normalised, then (1 - floor) w + floor / K; e_k is the tally's mean, in nats.

    A train step in which a teacher has no data, or none that is finite, counts as e_k = 0.
    """
    latest = running(tally, decay=0.0)

    def init(num_teachers: int) -> Value:
        equal = jnp.full(num_teachers, 1.0 / num_teachers, jnp.float32)
        return {**latest.init(num_teachers), "weights": equal, "ready": jnp.zeros((), bool)}

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        new = latest.update(value, tallies, train_step)
        seen = new["num_updates"] > value["num_updates"]
        excess = jnp.where(seen, jnp.maximum(new["value"], 0.0), 0.0)
        # The largest is taken out before the exponential: only ratios count, and no excess can overflow.
        raised = value["weights"] * jnp.exp(rate * (excess - excess.max()))
        weights = (1 - floor) * raised / raised.sum() + floor / raised.shape[0]
        return {**new, "weights": weights, "ready": value["ready"] | seen.any()}

    return Memory(init, update, every)
