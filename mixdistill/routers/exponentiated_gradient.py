"""A bandit over teachers: shares grow exponentially with a reward, such as the fall of a held-out loss.

The plain exponentiated-gradient rule (Kivinen and Warmuth 1997); no published use of it on teachers was read, so no
parity is claimed. Measured: fed with verified accuracy it learned nothing, because every teacher's students
are at chance for the first few hundred train steps and there is no signal to start from.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mixdistill.errors import unknown
from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally


def exponentiated_gradient(
    *,
    tally: str,
    reward: Literal["fall", "rise", "value"] = "fall",
    rate: float = 1.0,
    decay: float = 0.9,
    floor: float = 0.05,
    every: int = 10,
) -> Memory:
    """log w_k += rate * r_k after each train step with data of teacher k; shares (1 - floor) softmax + floor / K.

    r_k is the fall (or rise) of the tally's running mean in that train step, or the mean itself. Every teacher with
    data is updated, whatever its share: its reward was seen, not guessed. Raises `UserError` for another kind of
    reward.
    """
    if reward not in ("fall", "rise", "value"):
        raise unknown("reward", reward, ("fall", "rise", "value"))
    mean = running(tally, decay=decay)

    def init(num_teachers: int) -> Value:
        return _finish({**mean.init(num_teachers), "score": jnp.zeros(num_teachers, jnp.float32)}, floor)

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        new = mean.update(value, tallies, train_step)
        change = new["value"] - value["value"]
        gained = {"fall": -change, "rise": change, "value": new["value"]}[reward]
        # A change takes two values; the first is only where it starts.
        counts = (new["num_updates"] > value["num_updates"]) & ((value["num_updates"] > 0) | (reward == "value"))
        score = value["score"] + jnp.where(counts, rate * gained, 0.0)
        return _finish({**new, "score": score - score.max()}, floor)

    return Memory(init, update, every)


def _finish(value: Value, floor: float) -> Value:
    share = jax.nn.softmax(value["score"])
    weights = (1 - floor) * share + floor / share.shape[0]
    return {**value, "weights": weights, "ready": (value["score"] != 0).any()}
