"""Token-confidence gate: mask single tokens at which the student is least sure (after arXiv:2508.15260).

The finest grain of the confidence gates; compare `step_confidence` and `global_confidence`.
"""

from jaxtyping import Array, Bool, Float

from mixdistill.signals.steps import batch_wide
from mixdistill.signals.steps import quantile as value_at


@batch_wide
def sure_tokens(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    quantile: float = 0.1,
    at_least: float = float("-inf"),
) -> Bool[Array, "B T"]:
    """Close the least confident share `quantile` of the microbatch's tokens, and every token below `at_least` nats."""
    limit = value_at(token_confidence, valid, quantile)
    return (token_confidence >= limit) & (token_confidence >= at_least)
