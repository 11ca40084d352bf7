"""Routers: memory entries whose value has "weights", the share of each teacher in the batches to come.

A router sees tallies only, so it is deterministic, equal on all hosts and saved with the train state.
"""

from mixdistill.routers.acceptance import acceptance
from mixdistill.routers.frontier import frontier
from mixdistill.routers.learning_progress import learning_progress

__all__ = ["acceptance", "frontier", "learning_progress"]
