"""Frontier check: drops teachers whose traces this student makes no headway on, once, early in the run.

A teacher that is too hard or too terse for the student shares no context with anybody, so no measure of conflict sees
it; but the student's loss on it hardly falls while it falls on others. Costs no extra token: while a trace is met for
the first time its loss is a held-out loss, and a check within the first pass over the data sees no other.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from mixdistill.errors import UserError
from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally


def frontier(
    *,
    shares: tuple[float, ...],
    check_at: int,
    unit: Literal["tokens", "train_steps"] = "tokens",
    start: int = 40,
    margin: float = 0.4,
    learned: float = 0.6,
    decay: float = 0.95,
    every: int = 10,
    tally: str = "teacher/content_nll",
) -> Memory:
    """Once `check_at` tokens (or train steps) are done: drop t iff q_t > min q + `margin`, provided min q < `learned`.

    q_t = L_t now / L_t at train step `start`, L_t the running content NLL (nats) of the batches before they are trained
    on. `shares` are the weights that the mixture began with, in the order of teacher_id; those that stay keep theirs in
    proportion. A teacher of share 0, or without data at `start`, is neither judged nor dropped. Raises `UserError` if
    no share is positive.
    """
    if not any(share > 0 for share in shares):
        raise UserError(f"frontier shares are {shares}; at least one teacher needs a positive one")
    mean = running(tally, decay=decay)
    given = np.asarray(shares, np.float32)

    def init(num_teachers: int) -> Value:
        if num_teachers != len(shares):
            raise UserError(f"frontier has {len(shares)} shares for {num_teachers} teachers; give one for each")
        more = {"start": jnp.zeros(num_teachers, jnp.float32), "ratio": jnp.ones(num_teachers, jnp.float32)}
        spent = {"num_train_steps": jnp.zeros((), jnp.int32), "tokens": jnp.zeros((), jnp.float32)}
        return {
            **mean.init(num_teachers),
            **more,
            **spent,
            "weights": jnp.asarray(given / given.sum()),
            "ready": jnp.zeros((), bool),
        }

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        value = mean.update(value, tallies, train_step)
        steps, tokens = value["num_train_steps"] + 1, value["tokens"] + tallies["tokens"].sum
        first = jnp.where((steps == start) & (value["num_updates"] > 0), value["value"], value["start"])
        judged = (first > 0) & (given > 0)
        ratio = jnp.where(judged, value["value"] / jnp.where(judged, first, 1.0), 1.0)
        best = jnp.where(judged, ratio, jnp.inf).min()
        kept = ~(judged & (ratio > best + margin) & (best < learned))
        now = (steps if unit == "train_steps" else tokens) >= check_at
        decides = now & ~value["ready"]
        weights = jnp.where(kept, given, 0.0)
        return {
            **value,
            "num_train_steps": steps,
            "tokens": tokens,
            "start": first,
            "ratio": jnp.where(decides, ratio, value["ratio"]),
            "weights": jnp.where(decides, weights / weights.sum(), value["weights"]),
            "ready": value["ready"] | now,
        }

    return Memory(init, update, every)
