"""Distil or reinforce, never both: prompts whose teacher can be trusted with them, and the others (arXiv:2609.02998).

The field `distil` comes with rollouts: 1 where the prompt's teacher answered enough of its probes right.
"""

from jaxtyping import Array, Bool, Float


def distilled(distil: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Open where the prompt's teacher is followed."""
    return distil > 0.5


def reinforced(distil: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Open where the reward is followed."""
    return distil <= 0.5
