"""Routers drive the mixture: the weights that a memory entry has reached decide batches that are not yet planned."""

from collections.abc import Collection, Mapping

from mixdistill.objective import Objective, Tally
from mixdistill.training.batches import Batches
from mixdistill.training.position import Position
from mixdistill.training.rollout_pipeline import RolloutPipeline

READ_AHEAD = 2  # batches that the pipeline prepares while the device works
# Train steps from the tallies that a router has seen to the first batch that it changes. A plan that was read ahead is
# never taken back, and a fixed distance makes the mixture of every batch the same on all hosts and after resuming.
LEAD = READ_AHEAD + 2
SMALLEST = 1e-3  # share that is left to the others when teachers come back


def steer(
    pipeline: Batches,
    objective: Objective,
    position: Position,
    tallies: Mapping[str, Tally],
    closed: Collection[str] = (),
) -> None:
    """Sets the pipeline's weights from the tallies of the train step before `position`, if a router says so now.
    Teachers that are `closed` get nothing, unless nobody else would get anything."""
    for name, entry in objective.memory.items():
        if isinstance(pipeline, RolloutPipeline) or not entry.every or position.stage_train_steps % entry.every:
            continue
        if f"router/{name}" not in tallies:
            continue
        weights, ready = tallies[f"router/{name}"]
        if ready.all():
            wanted = {t: float(w) for t, w in zip(objective.teachers, weights, strict=True) if t in pipeline.teachers}
            pipeline.set_weights(without(wanted, closed), at_train_step=position.stage_train_steps + LEAD)


def reweigh(pipeline: Batches, position: Position, closed: Collection[str], opened: Mapping[str, float]) -> None:
    """Quarantine through the mixture: no weight to `closed` teachers; those `opened` get the share that is given."""
    if isinstance(pipeline, RolloutPipeline):
        return
    left = 1 - min(sum(opened.values()), 1 - SMALLEST)
    wanted = {name: weight * left for name, weight in pipeline.weights.items()} | dict(opened)
    pipeline.set_weights(without(wanted, closed), at_train_step=position.stage_train_steps + LEAD)


def without(weights: Mapping[str, float], closed: Collection[str]) -> dict[str, float]:
    """The weights with zeros for `closed`; as they are where nothing would be left."""
    kept = {name: 0.0 if name in closed else weight for name, weight in weights.items()}
    return kept if any(kept.values()) else dict(weights)
