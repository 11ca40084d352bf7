"""Cross entropy on the recorded next token: plain imitation."""

from jaxtyping import Array, Float


def cross_entropy(label_logprob: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """-log p(target) of the student per token, in nats."""
    return -label_logprob
