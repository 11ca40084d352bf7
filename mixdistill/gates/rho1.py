"""Rho-1: train on the tokens that a reference student finds much easier (arXiv:2404.07965).

Costs one more forward, of the reference, kept beside the shards as `reference_logprob`. The published share of tokens
could not be verified; 0.6 is a guess.
"""

from jaxtyping import Array, Bool, Float

from mixdistill.signals.steps import batch_wide, quantile


@batch_wide
def rho1(
    label_logprob: Float[Array, "B T"],
    reference_logprob: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    keep: float = 0.6,
) -> Bool[Array, "B T"]:
    """Open the share `keep` of the microbatch's tokens with the largest excess loss: the student's minus the
    reference's, in nats."""
    excess = reference_logprob - label_logprob
    return excess >= quantile(excess, valid, 1 - keep)
