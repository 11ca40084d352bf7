"""Tallies: every number that is reported is a (sum, weight) until it is printed: no mean of means can happen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Tally(NamedTuple):
    """A sum and the weight it is to be divided by; a scalar each, or one entry per teacher `[K]`. Weight 0: no data."""

    sum: Array
    weight: Array

    def mean(self) -> Array:
        """sum / weight; NaN where there are no data."""
        return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1), jnp.nan)


class Counter:
    """Collects tallies; per-teacher ones only if the objective knows its teachers."""

    def __init__(self, teacher_id: Int[Array, "B T"], num_teachers: int):
        self.tallies: dict[str, Tally] = {}
        self._of_teacher = (teacher_id[..., None] == jnp.arange(num_teachers)).astype(jnp.float32)

    def share(self, name: str, part: Bool[Array, "B T"], whole: Bool[Array, "B T"]) -> None:
        """How many of the `whole` are in `part`."""
        self.tallies[name] = Tally((part & whole).sum(dtype=jnp.float32), whole.sum(dtype=jnp.float32))

    def teachers(self, name: str, x: Array, where: Bool[Array, "B T"]) -> None:
        """Sum of `x` and number of tokens for each teacher; what is not finite is left out of both."""
        if self._of_teacher.shape[-1] == 0:
            return
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        where = where & jnp.isfinite(x)
        self.tallies[name] = Tally(self.split(jnp.where(where, x, 0.0)), self.split(where.astype(jnp.float32)))

    def split(self, x: Float[Array, "B T"]) -> Float[Array, "K"]:
        """Sums over the tokens of each teacher."""
        # HIGHEST: the default precision of a TPU or of TF32 would round sums of nats to 8 or 10 bits.
        return jnp.einsum("bt,btk->k", x, self._of_teacher, precision=jax.lax.Precision.HIGHEST)
