"""The mean of all logits of a token, for label smoothing: one dot product with the mean column of the unembedding.

A mean is linear, so it needs no pass over the vocabulary. As in the vocabulary pass a token whose cotangent is exactly
zero is dead: whatever it holds, a NaN too, reaches no gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from mixdistill.errors import UserError


def mean_logit(
    hidden: Num[Array, "... D"], unembed: Num[Array, "a b"], *, layout: str = "dv", soft_cap: float | None = None
) -> Float[Array, "..."]:
    """Mean over the vocabulary of `hidden @ unembed`, in nats; differentiable.

    Raises `UserError` for a student with a soft cap: its logits are not linear in `hidden`.
    """
    if soft_cap is not None:
        raise UserError("label smoothing needs the mean logit, which a student with a soft cap does not give cheaply")
    return _dot(hidden, unembed.astype(jnp.float32).mean(axis=1 if layout == "dv" else 0))


@jax.custom_vjp
def _dot(hidden, column):
    return jnp.einsum("...d,d->...", hidden, column, preferred_element_type=jnp.float32)


def _forward(hidden, column):
    return _dot(hidden, column), (hidden, column)


def _backward(residuals, cotangent):
    hidden, column = residuals
    live = jnp.where(cotangent[..., None] != 0, hidden, 0).astype(jnp.float32)
    to_hidden = (cotangent[..., None] * column).astype(hidden.dtype)
    return to_hidden, jnp.einsum("...,...d->d", cotangent, live)


_dot.defvjp(_forward, _backward)
