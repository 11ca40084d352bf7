"""Rank-surprisal gate: keep the traces whose rank-surprisal ratio is low (arXiv:2601.14249).

RSR = sum of min(rank, 100) / sum of surprisal; low is meant to say "informative, yet within reach". Mis-ranks
conflicting teachers (it rates those that share the anchor's surface above harmless foreign notations), and an
independent replication found it no better than chance (Kendall -0.18); compare it, do not trust it.
"""

from jaxtyping import Array, Bool, Float


def rank_surprisal(trace_rank_surprisal: Float[Array, "B T"], *, threshold: float) -> Bool[Array, "B T"]:
    """Keep a trace iff its rank-surprisal ratio is at most `threshold` (ranks per nat; no default fits every task)."""
    return trace_rank_surprisal <= threshold
