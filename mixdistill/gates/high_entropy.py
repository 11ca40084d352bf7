"""High-entropy tokens: train only where the student is torn between continuations (arXiv:2506.01939, there for RL)."""

from jaxtyping import Array, Bool, Float

from mixdistill.signals.steps import batch_wide, quantile


@batch_wide
def high_entropy(entropy: Float[Array, "B T"], valid: Bool[Array, "B T"], *, keep: float = 0.2) -> Bool[Array, "B T"]:
    """Open the share `keep` of the microbatch's tokens at which the student's entropy is highest."""
    return entropy >= quantile(entropy, valid, 1 - keep)
