"""Running estimates that training carries from one train step to the next: (init, update) pairs over tallies.

An entry `{"baseline": running("teacher/content_nll")}` of `Objective.memory` is a signal of that name: gates read it,
after it has seen every earlier train step. A teacher without data keeps its value, and a tally that is not finite is
left out and counted, so one bad batch cannot poison a run.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.errors import UserError
from mixdistill.objective import Memory, Objective, Tally, Value

__all__ = ["Memory", "Value", "init_memory", "running", "update_memory"]


def init_memory(objective: Objective) -> dict[str, Value]:
    """First values of all entries. Raises `UserError` if the objective has entries and does not know its teachers."""
    if objective.memory and not objective.teachers:
        raise UserError(
            "memory counts per teacher: give the objective its teachers with objective.with_teachers(names)"
        )
    return {name: entry.init(len(objective.teachers)) for name, entry in objective.memory.items()}


def update_memory(
    objective: Objective, memory: Mapping[str, Value], tallies: Mapping[str, Tally], train_step: Any
) -> dict[str, Value]:
    """Values after `train_step`. Entries that the objective does not have are returned as they were."""
    new = {name: entry.update(memory[name], tallies, train_step) for name, entry in objective.memory.items()}
    return {**memory, **new}


def running(tally: str, *, decay: float = 0.95, initial: float | None = None) -> Memory:
    """Exponential mean of a per-teacher tally over the train steps in which the teacher had data.

    The value has "value" float32[K], "num_updates" int32[K] and "num_bad" int32[] (teachers' tallies that were not
    finite). Without `initial` the mean is debiased: after n updates past values weigh decay^age, scaled to sum to one;
    it is 0 until the first. With `initial` it starts there.
    """
    if not 0 <= decay < 1:
        raise UserError(f"decay is {decay}; it is at least 0 and below 1")

    def init(num_teachers: int) -> Value:
        return {
            "value": jnp.full(num_teachers, 0.0 if initial is None else initial, jnp.float32),
            "num_updates": jnp.zeros(num_teachers, jnp.int32),
            "num_bad": jnp.zeros((), jnp.int32),
        }

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        del train_step
        seen, has, bad = _observed(tallies, tally)
        count = value["num_updates"] + has
        rate = 1 - decay if initial is not None else (1 - decay) / (1 - decay ** jnp.maximum(count, 1))
        moved = value["value"] + rate * (seen - value["value"])
        return {
            **value,
            "value": jnp.where(has, moved, value["value"]),
            "num_updates": count,
            "num_bad": value["num_bad"] + bad,
        }

    return Memory(init, update)


def _observed(tallies: Mapping[str, Tally], name: str) -> tuple[Float[Array, "K"], Bool[Array, "K"], Int[Array, ""]]:
    """Each teacher's mean (0 where there is none), whether there is one, and how many were not finite."""
    if name not in tallies:
        known = ", ".join(sorted(t for t in tallies if t.startswith("teacher/")))
        raise UserError(
            f"memory follows the tally {name!r}; known per-teacher tallies: {known}; see Objective(watch=...)"
        )
    mean = tallies[name].mean()
    has = (tallies[name].weight > 0) & jnp.isfinite(mean)
    bad = (tallies[name].weight != 0) & ~has
    return jnp.where(has, mean, 0.0), has, bad.sum(dtype=jnp.int32)
