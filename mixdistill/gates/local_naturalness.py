"""Local naturalness: keep the traces whose steps the student finds likely given only the steps just before.

Costs one more forward with block-local attention, kept beside the shards as `local_logprob`; the published window is
not known. Steps count equally, so long steps dilute their unlikely beginnings: `aslec` corrects that.
"""

from jaxtyping import Array, Bool, Float


def local_naturalness(trace_local_naturalness: Float[Array, "B T"], *, threshold: float) -> Bool[Array, "B T"]:
    """Keep a trace iff its LALP (arXiv:2510.03988), a mean of log-probabilities in nats, is at least `threshold`."""
    return trace_local_naturalness >= threshold
