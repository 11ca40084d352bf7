"""Mean-surprisal gate: keep the traces that the student finds likely as a whole (naturalness; cf. arXiv:2502.04194).

Mis-ranks conflicting teachers: one that shares the anchor's surface and contradicts it on one token in three has a
mean near 1 nat and is let in, while a harmless foreign notation at 8 nats stays out.
"""

from jaxtyping import Array, Bool, Float


def mean_surprisal(trace_surprisal: Float[Array, "B T"], *, threshold: float = 1.0) -> Bool[Array, "B T"]:
    """Keep a trace iff the mean surprisal of its content tokens is at most `threshold` nats."""
    return trace_surprisal <= threshold
