"""ASLEC-DROP: keep the traces that the student finds likely, the first tokens of every step left out.

A step's first tokens are unlikely whatever it says, so plain naturalness prefers traces of few, long steps. No more
forward than the one that trains. Reads likelihood, so it mis-ranks conflicting teachers as every likelihood does
(Kendall -0.18 in an independent replication on agents' traces).
"""

from jaxtyping import Array, Bool, Float


def aslec(trace_headless_logprob: Float[Array, "B T"], *, threshold: float) -> Bool[Array, "B T"]:
    """Keep a trace iff the mean log-probability of its tokens, without the first 2 of each step, is at least
    `threshold` nats (arXiv:2604.06834)."""
    return trace_headless_logprob >= threshold
