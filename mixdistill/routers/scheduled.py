"""Shares that follow the train step alone: one teacher first and others later, or a mixture that is evened out."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mixdistill.errors import UserError
from mixdistill.memory import Memory, Value
from mixdistill.objective import Tally


def scheduled(
    *,
    start: tuple[float, ...],
    end: tuple[float, ...],
    num_train_steps: int,
    begin: int = 0,
    temperature: float = 1.0,
    every: int = 10,
) -> Memory:
    """Shares go in a straight line from `start` to `end`, from train step `begin` on, in `num_train_steps`.

    Both are in the order of teacher_id and need not add up to one. Shares become w^(1/temperature), normalised: above 1
    small teachers get more than their share, and at infinity all get the same. Raises `UserError` for shares that are
    no shares, or not one for each teacher.
    """
    if len(start) != len(end) or num_train_steps < 1 or not temperature > 0:
        raise UserError(
            f"scheduled shares: {len(start)} at the start, {len(end)} at the end, in {num_train_steps} train steps at "
            f"temperature {temperature}; it takes as many at both ends, at least 1 train step and a temperature above 0"
        )
    lines = np.array([start, end], np.float64)
    if not (np.isfinite(lines).all() and (lines >= 0).all() and (lines.sum(axis=1) > 0).all()):
        raise UserError(f"scheduled shares {start} and {end}; they are finite, not negative, and one is positive")
    first, last = (jnp.asarray(line / line.sum(), jnp.float32) for line in lines)

    def at(train_step: Any) -> Value:
        done = jnp.clip((train_step - begin) / num_train_steps, 0.0, 1.0)
        share = first + done * (last - first)
        tempered = jnp.where(share > 0, jnp.where(share > 0, share, 1.0) ** (1 / temperature), 0.0)
        return {"weights": tempered / tempered.sum(), "ready": jnp.ones((), bool)}

    def init(num_teachers: int) -> Value:
        if num_teachers != len(start):
            raise UserError(f"scheduled has {len(start)} shares for {num_teachers} teachers; give one for each")
        return at(0)

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        del value, tallies
        return at(train_step + 1)

    return Memory(init, update, every)
