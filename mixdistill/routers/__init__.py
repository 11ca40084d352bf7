"""Routers: memory entries whose value has "weights", the share of each teacher in the batches to come.

A router sees tallies only, so it is deterministic, equal on all hosts and saved with the train state. What a tally says
that is not finite is left out and counted ("num_bad"); a teacher without data keeps its value.
"""

from mixdistill.routers.acceptance import acceptance
from mixdistill.routers.doremi import doremi
from mixdistill.routers.exponentiated_gradient import exponentiated_gradient
from mixdistill.routers.frontier import frontier
from mixdistill.routers.gradient_alignment import gradient_alignment
from mixdistill.routers.learning_progress import learning_progress
from mixdistill.routers.quality_learnability import quality_learnability
from mixdistill.routers.scheduled import scheduled

__all__ = [
    "acceptance",
    "doremi",
    "exponentiated_gradient",
    "frontier",
    "gradient_alignment",
    "learning_progress",
    "quality_learnability",
    "scheduled",
]
