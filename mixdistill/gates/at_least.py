"""Any score as a hard gate, from below: `use(at_least, score=trace_local_naturalness, threshold=-0.5)`."""

from jaxtyping import Array, Bool, Float


def at_least(score: Float[Array, "B T"], *, threshold: float) -> Bool[Array, "B T"]:
    """Open where `score` >= `threshold`; a NaN closes."""
    return score >= threshold
