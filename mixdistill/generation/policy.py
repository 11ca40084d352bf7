"""How the next token is drawn: temperature and truncation of the student's distribution, and the drawing itself."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.errors import UserError


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a token is drawn from: probabilities at `temperature`, cut by `top_k`, then `top_p`, then `min_p`.

    Temperature 0 takes the most likely token. top_p (nucleus, arXiv:1904.09751) keeps the fewest most likely tokens
    whose probabilities reach it; min_p (arXiv:2407.01082) keeps those of at least that share of the largest.
    Raises `UserError` for values outside their ranges.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it is 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it keeps at least 1 token")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}; it lies above 0 and at most at 1")


GREEDY = Policy(temperature=0.0)


def log_probabilities(raw: Float[Array, "B V"], policy: Policy) -> Float[Array, "B V"]:
    """Log-probabilities in nats under `policy`, -inf for what it cuts off, from raw logits (float32). The most likely
    token is never cut. Of a greedy policy: those of the plain distribution, which say how sure the choice was."""
    if policy.temperature == 0:
        return jax.nn.log_softmax(raw)
    scores = jax.nn.log_softmax(raw / policy.temperature)
    if policy.top_k is not None and policy.top_k < raw.shape[-1]:
        scores = _keep(scores, scores >= jax.lax.top_k(scores, policy.top_k)[0][:, -1:])
    if policy.top_p is not None and policy.top_p < 1:
        scores = _keep(scores, _nucleus(scores, policy.top_p))
    if policy.min_p is not None:
        scores = _keep(scores, scores >= scores.max(-1, keepdims=True) + jnp.log(policy.min_p))
    return scores


def draw(log_probs: Float[Array, "B V"], policy: Policy, keys: jax.Array) -> Int[Array, "B"]:
    """A token for each row; `keys` is one random key a row."""
    if policy.temperature == 0:
        return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, log_probs).astype(jnp.int32)


def _keep(scores: Float[Array, "B V"], kept: Bool[Array, "B V"]) -> Float[Array, "B V"]:
    return jax.nn.log_softmax(jnp.where(kept, scores, -jnp.inf))


def _nucleus(scores: Float[Array, "B V"], share: float) -> Bool[Array, "B V"]:
    ordered = -jnp.sort(-scores, axis=-1)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)  # probability of all that are more likely
    count = jnp.maximum((before < share).sum(-1, keepdims=True), 1)
    return scores >= jnp.take_along_axis(ordered, count - 1, axis=-1)
