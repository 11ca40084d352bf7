"""The host loop: `run(recipe, workdir)`. One screen to read; what is computed stands in `step.py`.

The device is waited for only at checkpoints: tallies of a train step are fetched after the next one was dispatched.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mixdistill.data.placement import place
from mixdistill.mesh import Device
from mixdistill.recipe import Recipe
from mixdistill.training import workdir as workdirs
from mixdistill.training.batches import Batches, read, told
from mixdistill.training.checkpoint import Checkpoint, Checkpoints
from mixdistill.training.handover import Handover
from mixdistill.training.hooks import Hook, default_hooks
from mixdistill.training.job import Job, build
from mixdistill.training.position import Position
from mixdistill.training.report import Arrived, Late, Report
from mixdistill.training.state import TrainState
from mixdistill.training.steer import steer
from mixdistill.training.stop import Stop


class Outcome(NamedTuple):
    """What `run` leaves: the last state, how far it is, and the signal that ended it early (or None)."""

    state: TrainState
    position: Position
    stopped_by: str | None


class _Run(NamedTuple):
    job: Job
    checkpoints: Checkpoints
    report: Report
    stop: Stop


def run(
    recipe: Recipe,
    workdir: Path | str,
    *,
    hooks: Sequence[Hook] = (),
    devices: Sequence[Device] | None = None,
    quiet: bool = False,
    command: str = "",
) -> Outcome:
    """Trains by `recipe` in `workdir`; goes on from the last checkpoint there, bit for bit as if never interrupted.

    SIGTERM and Ctrl-C save a checkpoint and return. `quiet` leaves out the screen, not the files. `command` is noted
    beside the checkpoints: how the recipe was named. Raises `UserError` for bad input before anything is written, and
    for a workdir whose run had other teachers, tokenizer or recipe.
    """
    began, workdir, job = time.perf_counter(), Path(workdir), build(recipe, devices, command)
    workdirs.make(workdir)
    with Stop() as stop, Checkpoints(workdir, keep=recipe.keep_checkpoints) as checkpoints:
        state, position = _begin(job, checkpoints)
        workdirs.write_about(workdir, job.identity, job.shards)
        own = default_hooks(workdir, job.teachers, recipe.budget, position.train_step, quiet=quiet)
        with Report(recipe, [*own, *hooks], position, began) as report:
            report.event("start", position, state)
            run = _Run(job, checkpoints, report, stop)
            while position.stage < len(recipe.stages) and not stop.signal:
                state, position = _train(run, state, position)
            _save(run, position, state)
            report.event("end", position, state)
    return Outcome(state, position, stop.signal if position.stage < len(recipe.stages) else None)


def _begin(job: Job, checkpoints: Checkpoints) -> tuple[TrainState, Position]:
    """From the last checkpoint, or from the start."""
    if (latest := checkpoints.latest()) is None:
        return job.initial_state(), Position()
    saved = checkpoints.restore(latest, job.abstract_state(), job.identity)
    return saved.state, Position.from_json(saved.position)


def _train(run: _Run, state: TrainState, position: Position) -> tuple[TrainState, Position]:
    """To the end of the stage that is in force, or to a signal."""
    job, report, stop, late = run.job, run.report, run.stop, Late()
    stage, step, exam = job.recipe.stages[position.stage], job.train_step(position.stage), job.exam(position.stage)
    handover = Handover(stage.until, position.handover)

    def over(position: Position) -> bool:
        return position.spends(stage.budget) or handover.due(position.stage_train_steps)

    with contextlib.closing(job.pipeline(position)) as pipeline:
        while not (over(position) or stop.asked(position.train_step)):
            batch = place(read(pipeline, state, position.train_step), job.mesh, job.recipe.rules)
            state, tallies = step(state, batch)
            position = position.after(pipeline.num_targets)
            report.event("train_step", position, state)
            tallies |= told(pipeline) | exam(state.params, position)
            _arrive(run, pipeline, handover, late.swap((position, tallies)), state)
            if position.train_step % job.recipe.checkpoint_every == 0:
                _arrive(run, pipeline, handover, late.swap(None), state)
                _save(run, position.at(pipeline, handover.to_json(), report.seconds), state)
        _arrive(run, pipeline, handover, late.swap(None), state)
        position = position.at(pipeline, handover.to_json(), report.seconds)
    if over(position):
        report.event("stage", position, state)
        position = position.next_stage(stage.name, "" if position.spends(stage.budget) else handover.reason)
    return state, position


def _arrive(run: _Run, pipeline: Batches, handover: Handover, arrived: list[Arrived], state: TrainState) -> None:
    for position, tallies in arrived:
        steer(pipeline, run.job.objectives[position.stage], position, tallies)
        handover.observe(position.stage_train_steps, tallies)
        run.report.add(position, tallies, state)


def _save(run: _Run, position: Position, state: TrainState) -> None:
    # A resumed process begins a new line: it has no tallies of train steps before the checkpoint.
    run.report.flush(state)
    run.checkpoints.save(position.train_step, Checkpoint(state, position.to_json(), run.job.identity))
    run.report.event("checkpoint", position, state)
