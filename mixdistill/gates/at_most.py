"""Any score as a hard gate: `use(at_most, score=trace_surprisal, threshold=1.0)`.

The score is any signal by name or as a function; the threshold may follow the train step (`Scheduled`). A score per
trace gates traces, one per step steps, one per token tokens.
"""

from jaxtyping import Array, Bool, Float


def at_most(score: Float[Array, "B T"], *, threshold: float) -> Bool[Array, "B T"]:
    """Open where `score` <= `threshold`; a NaN closes."""
    return score <= threshold
