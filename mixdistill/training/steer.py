"""Routers drive the mixture: the weights that a memory entry has reached decide batches that are not yet planned."""

from collections.abc import Mapping

from mixdistill.objective import Objective, Tally
from mixdistill.training.batches import Batches
from mixdistill.training.position import Position
from mixdistill.training.rollout_pipeline import RolloutPipeline

READ_AHEAD = 2  # batches that the pipeline prepares while the device works
# Train steps from the tallies that a router has seen to the first batch that it changes. A plan that was read ahead is
# never taken back, and a fixed distance makes the mixture of every batch the same on all hosts and after resuming.
LEAD = READ_AHEAD + 2


def steer(pipeline: Batches, objective: Objective, position: Position, tallies: Mapping[str, Tally]) -> None:
    """Sets the pipeline's weights from the tallies of the train step before `position`, if a router says so now."""
    for name, entry in objective.memory.items():
        if isinstance(pipeline, RolloutPipeline) or not entry.every or position.stage_train_steps % entry.every:
            continue
        weights, ready = tallies[f"router/{name}"]
        if ready.all():
            wanted = {t: float(w) for t, w in zip(objective.teachers, weights, strict=True) if t in pipeline.teachers}
            pipeline.set_weights(wanted, at_train_step=position.stage_train_steps + LEAD)
