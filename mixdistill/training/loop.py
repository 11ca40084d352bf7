"""The host loop: `run(recipe, workdir)`. One screen to read; what is computed stands in `step.py`.

The device is waited for only at checkpoints: tallies of a train step are fetched after the next one was dispatched.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from mixdistill.data.pipeline import Pipeline
from mixdistill.data.placement import place
from mixdistill.errors import UserError
from mixdistill.recipe import Recipe
from mixdistill.training.checkpoint import Checkpoint, Checkpoints
from mixdistill.training.hooks import Hook, default_hooks
from mixdistill.training.job import Job, build
from mixdistill.training.position import Position
from mixdistill.training.report import Arrived, Late, Report
from mixdistill.training.state import TrainState, abstract
from mixdistill.training.steer import steer
from mixdistill.training.stop import Stop


class Outcome(NamedTuple):
    """What `run` leaves: the last state, how far it is, and the signal that ended it early (or None)."""

    state: TrainState
    position: Position
    stopped_by: str | None


def run(
    recipe: Recipe,
    workdir: Path | str,
    *,
    hooks: Sequence[Hook] = (),
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
) -> Outcome:
    """Trains by `recipe` in `workdir`; goes on from the last checkpoint there, bit for bit as if never interrupted.

    SIGTERM and Ctrl-C save a checkpoint and return. `quiet` leaves out the screen, not the files. Raises `UserError` for
    bad input before anything is written, and for a workdir whose run had other teachers, tokenizer or recipe.
    """
    workdir, job = Path(workdir), build(recipe, devices)
    state, position = job.initial_state(), Position()
    _make(workdir)
    with Checkpoints(workdir, keep=recipe.keep_checkpoints) as checkpoints, Stop() as stop:
        if (latest := checkpoints.latest()) is not None:
            saved = checkpoints.restore(latest, abstract(state, job.student, job.mesh, recipe.rules), job.identity)
            state, position = saved.state, Position.from_json(saved.position)
        _write_recipe(workdir, job)
        own = default_hooks(workdir, job.teachers, recipe.budget, position.train_step, quiet=quiet)
        report, late = Report(recipe, [*own, *hooks], position), Late()
        report.event("start", position, state)
        while position.stage < len(recipe.stages) and not stop.signal:
            stage, step = recipe.stages[position.stage], job.train_step(position.stage)
            with contextlib.closing(job.pipeline(position)) as pipeline:
                while not (position.spends(stage.budget) or stop.asked(position.train_step)):
                    batch = next(pipeline)
                    state, tallies = step(state, place(batch, job.mesh, recipe.rules))
                    position = position.after(pipeline.num_targets)
                    report.event("train_step", position, state)
                    _arrive(job, pipeline, report, late.swap((position, tallies)), state)
                    if position.train_step % recipe.checkpoint_every == 0:
                        _arrive(job, pipeline, report, late.swap(None), state)
                        _save(job, checkpoints, report, position.at(pipeline, report.seconds), state)
                _arrive(job, pipeline, report, late.swap(None), state)
                position = position.at(pipeline, report.seconds)
            if position.spends(stage.budget):
                report.event("stage", position, state)
                position = position.next_stage()
        _save(job, checkpoints, report, position, state)
        report.event("end", position, state)
    return Outcome(state, position, stop.signal)


def _arrive(job: Job, pipeline: Pipeline, report: Report, arrived: list[Arrived], state: TrainState) -> None:
    for position, tallies in arrived:
        steer(pipeline, job.objectives[position.stage], position, tallies)
        report.add(position, tallies, state)


def _save(job: Job, checkpoints: Checkpoints, report: Report, position: Position, state: TrainState) -> None:
    # A resumed process begins a new line: it has no tallies of train steps before the checkpoint.
    report.flush(state)
    checkpoints.save(position.train_step, Checkpoint(state, position.to_json(), job.identity))
    report.event("checkpoint", position, state)


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror}); give another one with --workdir"
        ) from None


def _write_recipe(workdir: Path, job: Job) -> None:
    if jax.process_index() == 0:
        temporary = workdir / "recipe.txt.tmp"
        temporary.write_text(job.identity.recipe, encoding="utf-8")
        temporary.replace(workdir / "recipe.txt")
