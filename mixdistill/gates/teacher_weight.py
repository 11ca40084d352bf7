"""A fixed weight for each teacher: the knowledge of who is good, put in by hand."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mixdistill.errors import UserError, unknown


def teacher_weight(
    teacher_id: Int[Array, "B T"],
    teachers: tuple[str, ...],
    *,
    weights: Mapping[str, float],
    others: float = 1.0,
) -> Float[Array, "B T"]:
    """`weights[teacher]` at every token of that teacher, `others` for a teacher that is not named.

    A factor of the loss, not a share of the batch: that is the mixture's. Raises `UserError` for an unknown teacher
    and for a weight that is negative or not finite.
    """
    for name, weight in weights.items():
        if name not in teachers:
            raise unknown("teacher", name, teachers)
        if not 0 <= weight < float("inf"):
            raise UserError(f"the weight of teacher {name!r} is {weight}; a weight is finite and not negative")
    return jnp.asarray([weights.get(name, others) for name in teachers], jnp.float32)[teacher_id]
