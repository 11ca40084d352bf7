"""T3S: mask the tokens on which imitation improves first, at the price of what the student could do (arXiv:2601.10348).

theta_b is the checkpoint of a throw-away run at its lowest accuracy; the tokens that it learned up to there are masked,
and training starts again from theta_0. Costs that run and two forwards, kept beside the shards as `shocked_logprob`
(theta_b) and `base_logprob` (theta_0). One teacher in the paper.
"""

from jaxtyping import Array, Bool, Float


def t3s(shocked_logprob: Float[Array, "B T"], base_logprob: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Open where log p(theta_b) - log p(theta_0) <= 0."""
    return shocked_logprob <= base_logprob
