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


def draws(batches: Batches) -> bool:
    """Whether the next batch takes long: it has to be drawn first."""
    return isinstance(batches, RolloutPipeline) and batches.spent


def told(batches: Batches) -> dict[str, Tally]:
    """What the source says of the batch read last."""
    return batches.tallies if isinstance(batches, RolloutPipeline) else {}


def traces_of(batches: Batches) -> tuple[tuple[int, ...], int | None]:
    """The traces of the batch read last, and the targets that its plan holds (None: there is no plan)."""
    return batches.traces, None if isinstance(batches, RolloutPipeline) else batches.num_targets


def shares(batches: Batches) -> dict[str, float]:
    """The mixture's weights by teacher, changes that are still to come included; {} for rollouts."""
    return {} if isinstance(batches, RolloutPipeline) else batches.weights
