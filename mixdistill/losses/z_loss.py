"""z-loss: keeps the logits' normaliser near 1, so that bfloat16 logits neither drift nor overflow."""

from jaxtyping import Array, Float


def z_loss(lse: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Squared log-sum-exp of the logits per token, in square nats (arXiv:2204.02311, there with coef 1e-4)."""
    return lse**2
