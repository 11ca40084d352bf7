"""A stage's batches, wherever they come from: recorded traces, or the student's own completions."""

from mixdistill.data.fields import Batch
from mixdistill.data.pipeline import Pipeline
from mixdistill.objective import Tally
from mixdistill.training.rollout_pipeline import RolloutPipeline
from mixdistill.training.state import TrainState

Batches = Pipeline | RolloutPipeline


def read(batches: Batches, state: TrainState, train_step: int) -> Batch:
    """This process's rows of the next batch. Rollouts wait for the parameters of `state`, which are of `train_step`."""
    return batches.read(state.params, train_step) if isinstance(batches, RolloutPipeline) else next(batches)


def told(batches: Batches) -> dict[str, Tally]:
    """What the source says of the batch read last."""
    return batches.tallies if isinstance(batches, RolloutPipeline) else {}
