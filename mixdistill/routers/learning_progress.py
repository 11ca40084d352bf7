"""Learning progress: more of the teachers on whose content tokens the student has improved most.

Follows content tokens only; on all tokens it picks the teacher with the most predictable filler. Measured: repairs a
pool of five conflicting teachers in one procedural world by collapsing to one of them, so it loses coverage; in the
other world it keeps two conflicting teachers together and fails. Not a safe default.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally


def learning_progress(
    *,
    decay: float = 0.95,
    start: int = 40,
    temperature: float = 0.1,
    floor: float = 0.1,
    every: int = 10,
    tally: str = "teacher/content_nll",
) -> Memory:
    """w = (1 - floor) softmax(-(L_k / L_k[start]) / temperature) + floor / K, L_k the running NLL of teacher k.

    `start` counts updates of this entry; until then the weights are equal and "ready" is false. A teacher that is first
    seen later starts there, with ratio 1.
    """
    mean = running(tally, decay=decay)

    def finish(value: Value) -> Value:
        begun = value["start"] > 0
        ratio = jnp.where(begun, value["value"] / jnp.where(begun, value["start"], 1.0), 1.0)
        ready = value["num_train_steps"] >= start
        share = jax.nn.softmax(jnp.where(ready, -ratio / temperature, 0.0))
        return {**value, "weights": (1 - floor) * share + floor / ratio.shape[0], "ready": ready}

    def init(num_teachers: int) -> Value:
        more = {"start": jnp.zeros(num_teachers, jnp.float32), "num_train_steps": jnp.zeros((), jnp.int32)}
        return finish({**mean.init(num_teachers), **more})

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        value = mean.update(value, tallies, train_step)
        steps = value["num_train_steps"] + 1
        begins = (steps >= start) & (value["start"] == 0) & (value["num_updates"] > 0)
        first = jnp.where(begins, value["value"], value["start"])
        return finish({**value, "start": first, "num_train_steps": steps})

    return Memory(init, update, every)
