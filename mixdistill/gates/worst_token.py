"""Worst-token gate: a trace is refused for its single least likely content token.

Measured in two procedural worlds with one constant: a safe filter around a learned anchor, as good as the anchor
alone, where the mean-surprisal gate let a conflicting teacher in. It never merges: any foreign style has one
surprising token, useful or not. Use it with refill (`mixdistill.routers.acceptance`) and only once the anchor is
learned; before that it refuses everything.
"""

from jaxtyping import Array, Bool, Float


def worst_token(worst_surprisal: Float[Array, "B T"], *, threshold: float = 3.0) -> Bool[Array, "B T"]:
    """Keep a trace iff its least likely content token costs the student at most `threshold` nats."""
    return worst_surprisal <= threshold
