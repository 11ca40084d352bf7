"""Label smoothing: cross entropy against the target mixed with the uniform distribution (arXiv:1512.00567)."""

from jaxtyping import Array, Float


def label_smoothing(
    label_logprob: Float[Array, "B T"],
    lse: Float[Array, "B T"],
    mean_logit: Float[Array, "B T"],
    *,
    smoothing: float = 0.1,
) -> Float[Array, "B T"]:
    """-(1 - smoothing) log p(target) - smoothing * (mean of log p over the whole vocabulary), per token, in nats."""
    return -(1 - smoothing) * label_logprob + smoothing * (lse - mean_logit)
