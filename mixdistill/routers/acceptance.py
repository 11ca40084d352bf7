"""Refill: what a gate refuses of one teacher is drawn from the teachers that it accepts.

Without it a gate shrinks the batch, and equal train steps are no longer equal tokens; with it the worst-token gate is
as good as its anchor alone on two procedural worlds. It makes a filter, never a merge.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally


def acceptance(
    *, decay: float = 0.9, floor: float = 0.05, every: int = 10, tally: str = "teacher/traces_kept"
) -> Memory:
    """w_k = (1 - floor) a_k / sum(a) + floor / K, where a_k is the running share of teacher k's traces that are kept.

    a_k starts at 1 and moves by 1 - decay in train steps in which k has traces; the floor keeps every teacher under
    observation. If nothing at all is accepted any more the weights are equal.
    """
    mean = running(tally, decay=decay, initial=1.0)

    def finish(value: Value) -> Value:
        accepted = value["value"]
        total, equal = accepted.sum(), 1.0 / accepted.shape[0]
        share = jnp.where(total > 0, accepted / jnp.where(total > 0, total, 1.0), equal)
        weights = (1 - floor) * share + floor * equal
        return {**value, "weights": weights, "ready": (value["num_updates"] > 0).any()}

    def init(num_teachers: int) -> Value:
        return finish(mean.init(num_teachers))

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        return finish(mean.update(value, tallies, train_step))

    return Memory(init, update, every)
