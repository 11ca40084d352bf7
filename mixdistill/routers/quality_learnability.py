"""Quality and learnability: more of the teachers that are right and that the student finds likely (PerSyn-style).

arXiv:2510.10925 adds 0.6 quality and 0.4 learnability (the student's mean log-probability) for every pair of prompt and
teacher; here it is one number a teacher, normalised over teachers, so no parity is claimed. Likelihood stands for ease,
not for what is gained, and mis-ranks teachers whose forms conflict. Quality is read from
`Objective(watch=("trace_correct",), fields=("trace_correct",))`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally


def quality_learnability(
    *,
    share: float = 0.6,
    temperature: float = 0.2,
    decay: float = 0.95,
    floor: float = 0.05,
    every: int = 10,
    quality: str = "teacher/trace_correct",
    nll: str = "teacher/nll",
) -> Memory:
    """w = (1 - floor) softmax((share * q + (1 - share) * l) / temperature) + floor / K.

    q and l are the running means of the tallies `quality` and -`nll`, each stretched to [0, 1] over the teachers. A
    teacher without data of one kind counts 1/2 there; ready once some teacher has both.
    """
    right, lost = running(quality, decay=decay), running(nll, decay=decay)

    def finish(q: Value, n: Value) -> Value:
        seen_q, seen_n = q["num_updates"] > 0, n["num_updates"] > 0
        score = share * _stretch(q["value"], seen_q) + (1 - share) * _stretch(-n["value"], seen_n)
        weights = (1 - floor) * jax.nn.softmax(score / temperature) + floor / score.shape[0]
        kept = {f"{name}{key}": entry for name, part in (("q_", q), ("n_", n)) for key, entry in part.items()}
        return {**kept, "weights": weights, "ready": (seen_q & seen_n).any()}

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        q, n = ({key[2:]: entry for key, entry in value.items() if key.startswith(name)} for name in ("q_", "n_"))
        return finish(right.update(q, tallies, train_step), lost.update(n, tallies, train_step))

    return Memory(lambda num_teachers: finish(right.init(num_teachers), lost.init(num_teachers)), update, every)


def _stretch(x: Float[Array, "K"], seen: Bool[Array, "K"]) -> Float[Array, "K"]:
    """The seen from 0 for the least to 1 for the most; 1/2 for the others, and for all if they are equal."""
    low = jnp.where(seen, x, jnp.inf).min()
    width = jnp.where(seen, x, -jnp.inf).max() - low
    differ = seen & (width > 0)
    return jnp.where(differ, (x - low) / jnp.where(width > 0, width, 1.0), 0.5)
