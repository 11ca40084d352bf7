"""What follows from the tallies of a train step: in the guard, the mixture, the hand-over, the ledger and the log."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mixdistill.objective import Tally
from mixdistill.training.batches import Batches, shares
from mixdistill.training.guard import Decision, Watch
from mixdistill.training.handover import Handover
from mixdistill.training.history import History
from mixdistill.training.job import Job
from mixdistill.training.position import Position
from mixdistill.training.report import Arrived, Report
from mixdistill.training.state import TrainState
from mixdistill.training.steer import reweigh, steer


class Parts(Protocol):
    """What of a run is told."""

    @property
    def job(self) -> Job: ...
    @property
    def report(self) -> Report: ...
    @property
    def guard(self) -> Watch: ...
    @property
    def history(self) -> History: ...


def arrive(run: Parts, pipeline: Batches, handover: Handover, arrived: list[Arrived], state: TrainState) -> None:
    """Tallies (numpy) of train steps, in their order."""
    for position, tallies in arrived:
        decisions = _guarded(run, pipeline, position, tallies)
        steer(pipeline, run.job.objectives[position.stage], position, tallies, run.guard.closed)
        handover.observe(position.stage_train_steps, tallies)
        skipped = bool(tallies["optimizer/skipped"].sum > 0) if "optimizer/skipped" in tallies else False
        run.history.arrived(position.train_step, run.job.recipe.stages[position.stage].name, skipped, decisions)
        run.report.add(position, tallies, state)


def _guarded(run: Parts, pipeline: Batches, position: Position, tallies: Mapping[str, Tally]) -> Sequence[Decision]:
    """What the guard decides; quarantine and its end reach the mixture."""
    step = position.train_step
    decisions = run.guard.observe(position, tallies, shares(pipeline), run.history.planned(step))
    changes = [one for one in decisions if one["event"] in ("quarantine", "readmit")]
    if changes:
        opened = {one["teacher"]: one["weight"] for one in changes if one["event"] == "readmit"}
        reweigh(pipeline, position, run.guard.closed, opened)
    return [_named(one, run, pipeline, step) for one in decisions]


def _named(decision: Decision, run: Parts, pipeline: Batches, step: int) -> Decision:
    """With the traces that a strike is about: those of the teachers it is charged to, else all of the batch."""
    if decision["event"] == "damaged":
        return {**decision, "traces": list(pipeline.corpus.damage.traces)}  # of those that this process has met
    if decision["event"] not in ("nonfinite", "spike"):
        return decision
    corpus, guilty = pipeline.corpus, decision["teachers"]
    traces = run.history.traces(step)
    named = [t for t in traces if not guilty or corpus.teachers[int(corpus.teacher[t])] in guilty]
    return {**decision, "traces": named}
