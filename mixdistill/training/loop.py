"""The host loop: `run(recipe, workdir)`. One screen to read; what is computed stands in `step.py`.

The device is waited for only at checkpoints: tallies of a train step are fetched after the next one was dispatched.
"""

import contextlib
import dataclasses
import errno
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mixdistill.chips import peak_of
from mixdistill.data.placement import place
from mixdistill.errors import UserError
from mixdistill.mesh import Device
from mixdistill.recipe import Recipe
from mixdistill.training import grouping
from mixdistill.training import pending as pendings
from mixdistill.training import workdir as workdirs
from mixdistill.training.ahead import compiled
from mixdistill.training.arrivals import arrive
from mixdistill.training.average import judged
from mixdistill.training.batches import Batches, draws, read, told, traces_of
from mixdistill.training.checkpoint import Checkpoint, Checkpoints
from mixdistill.training.guard import Watch
from mixdistill.training.handover import Handover
from mixdistill.training.history import History
from mixdistill.training.hooks import Hook, default_hooks
from mixdistill.training.job import Job, build
from mixdistill.training.position import Position
from mixdistill.training.report import Late, Report
from mixdistill.training.soundness import soundness
from mixdistill.training.state import TrainState
from mixdistill.training.steer import reweigh
from mixdistill.training.step import TrainStep
from mixdistill.training.stop import Stop, Stopped


class Outcome(NamedTuple):
    """What `run` leaves: the last state, how far it is, and what ended it early: a signal, the guard, or None."""

    state: TrainState
    position: Position
    stopped_by: str | None


class _Run(NamedTuple):
    job: Job
    checkpoints: Checkpoints
    report: Report
    stop: Stop
    guard: Watch
    history: History
    opened: dict[str, float]  # teachers that are let back in now, and their shares


def run(
    recipe: Recipe,
    workdir: Path | str,
    *,
    hooks: Sequence[Hook] = (),
    devices: Sequence[Device] | None = None,
    quiet: bool = False,
    command: str = "",
    forgive: tuple[str, ...] = (),
) -> Outcome:
    """Trains by `recipe` in `workdir`; goes on from the last checkpoint there, bit for bit as if never interrupted.

    SIGTERM and Ctrl-C save a checkpoint and return. `quiet` leaves out the screen, not the files. `command` is noted
    beside the checkpoints: how the recipe was named. `forgive` names teachers to let out of quarantine ("all"), and
    lets a run go on that its guard stopped. Raises `UserError` for bad input before anything is written, for a workdir
    whose run had other teachers, tokenizer or recipe, and for a disk that is full.
    """
    began, workdir, job = time.perf_counter(), Path(workdir), build(recipe, devices, command)
    writing = jax.process_index() == 0
    workdirs.make(workdir)
    with _full_disk(workdir), Stop() as stop, Checkpoints(workdir, keep=recipe.keep_checkpoints) as checkpoints:
        state, position = _begin(job, checkpoints)
        workdirs.write_about(workdir, job.identity, job.shards)
        own = default_hooks(workdir, job.teachers, recipe.budget, position.logged, quiet=quiet)
        history = History(workdir, position.recorded, writing=writing, quiet=quiet)
        peak = peak_of(list(job.mesh.devices.flat))
        with Report(recipe, [*own, *hooks], position, began, peak) as report:
            position = dataclasses.replace(position, window=None)
            report.event("start", position, state)
            run = _Run(job, checkpoints, report, stop, Watch(recipe.guard, job.teachers, position.guard), history, {})
            if job.admission is not None and not position.train_step:
                history.decided([grouping.decision(job.admission)])
            _forgive(run, forgive, position)
            while position.stage < len(recipe.stages) and not (stop.signal or run.guard.stopped):
                state, position = _train(run, state, position)
            if not _save(run, position, state, regular=False):
                raise UserError(f"the last state could not be saved in {workdir}; the checkpoints before it are whole")
            report.event("end", position, state)
    unfinished = position.stage < len(recipe.stages)
    position = dataclasses.replace(position, guard=run.guard.to_json(), seconds=report.seconds)
    return Outcome(state, position, (stop.signal or run.guard.stopped or None) if unfinished else None)


def _begin(job: Job, checkpoints: Checkpoints) -> tuple[TrainState, Position]:
    """From the newest checkpoint that is whole, or from the start."""
    saved = checkpoints.newest(job.abstract_state(), job.identity, _say)
    return (job.initial_state(), Position()) if saved is None else (saved.state, Position.from_json(saved.position))


def _forgive(run: _Run, names: tuple[str, ...], position: Position) -> None:
    if not names:
        return
    if unknown := [name for name in names if name not in (*run.job.teachers, "all")]:
        raise UserError(f"no teacher {unknown[0]!r} to forgive; known: {', '.join(run.job.teachers)}, all")
    decisions = run.guard.forgive(names, position.train_step)
    run.opened.update({one["teacher"]: one["weight"] for one in decisions})
    run.history.decided(decisions)


def _train(run: _Run, state: TrainState, position: Position) -> tuple[TrainState, Position]:
    """To the end of the stage that is in force, to a signal, or to where the guard stops the run."""
    job, late = run.job, Late()
    stage, exam, step = job.recipe.stages[position.stage], job.exam(position.stage), None
    handover, end_of_branch = Handover(stage.until, position.handover), job.end_of_branch(position.stage)

    def over(position: Position) -> bool:
        return job.rounds.may_end(position, position.spends(stage.budget) or handover.due(position.stage_train_steps))

    def settle(new=None) -> None:
        with run.report.spent.on("device"):
            arrived = late.swap(new)
        arrive(run, pipeline, handover, arrived, state)

    away = job.rounds.turned_away(state, position.stage)
    with contextlib.closing(job.pipeline(position, run.guard.closed, away)) as pipeline:
        if run.opened and position.pipeline is not None:
            reweigh(pipeline, position, run.guard.closed, run.opened)
        run.opened.clear()
        if position.pending is not None:
            tallies, (traces, planned) = pendings.read(position.pending)
            position = dataclasses.replace(position, pending=None)
            run.history.saw(position.train_step, traces, planned)
            tallies |= exam(judged(state), position)
            state = end_of_branch(state, position, tallies)
            arrive(run, pipeline, handover, [(position, tallies)], state)
            if position.train_step % job.recipe.checkpoint_every == 0:
                _save(run, position.at(pipeline, handover.to_json()), state, regular=True)
        while not (over(position) or run.stop.asked() or run.guard.stopped):
            if run.guard.rolls_back(position.train_step):
                settle()
                state = _roll_back(run, position)
            try:
                batch, step = _next(run, pipeline, state, position, step)
            except Stopped:
                break
            # The annotation lets a profile tell train steps apart.
            marked = jax.profiler.StepTraceAnnotation("train_step", step_num=position.train_step + 1)
            with run.report.spent.on("dispatch"), marked:
                state, tallies = step(state, batch)
            position = position.after(pipeline.num_targets)
            run.history.saw(position.train_step, *traces_of(pipeline))
            run.report.event("train_step", position, state)
            tallies |= told(pipeline) | job.spends(position.stage, pipeline)
            if exam.due(position):  # or the train step would be counted as evaluation
                with run.report.spent.on("device"):
                    jax.block_until_ready(state)
            try:
                with run.report.spent.on("evaluation"), run.stop.at_once():
                    tallies |= exam(judged(state), position)
            except Stopped:
                settle()
                position = dataclasses.replace(position, pending=pendings.write(tallies, traces_of(pipeline)))
                break
            state = end_of_branch(state, position, tallies)
            settle((position, tallies))
            if position.train_step % job.recipe.checkpoint_every == 0:
                settle()
                _save(run, position.at(pipeline, handover.to_json()), state, regular=True)
        settle()
        position = position.at(pipeline, handover.to_json())
    if over(position) and position.pending is None:
        run.report.event("stage", position, state)
        run.history.decided(job.rounds.decisions(state, position))
        position = position.next_stage(stage.name, "" if position.spends(stage.budget) else handover.reason)
        _save(run, position, state, regular=True)
    return state, position


def _next(
    run: _Run, pipeline: Batches, state: TrainState, position: Position, step: TrainStep | None
) -> tuple[dict, TrainStep]:
    """The next batch and the program for it. Raises `Stopped`, with the pipeline where it was."""
    long = step is None or draws(pipeline)
    before = pipeline.get_state() if long else None
    try:
        with run.report.spent.on("data"):
            with run.stop.at_once() if draws(pipeline) else contextlib.nullcontext():
                rows = read(pipeline, state, position.train_step)
            batch = place(rows, run.job.mesh, run.job.recipe.rules)
        if step is None:
            lazy = run.job.train_step(position.stage)
            with run.report.spent.on("compile"):
                step = run.stop.leaving(lambda: compiled(lazy, state, batch))
        return batch, step
    except Stopped:
        assert before is not None
        pipeline.set_state(before)
        raise


def _roll_back(run: _Run, position: Position) -> TrainState:
    """The state of the last good checkpoint. The train steps since then count as skipped: their data are not read
    again, and the learning rate has not moved."""
    run.checkpoints.wait()
    good, job = run.guard.good, run.job
    found = run.checkpoints.newest(job.abstract_state(), job.identity, _say, most=good) if good else None
    state = job.initial_state() if found is None else found.state
    run.history.decided([run.guard.rolled_back(position.train_step)])
    return state._replace(train_step=jax.device_put(np.int32(position.train_step), state.train_step.sharding))


def _save(run: _Run, position: Position, state: TrainState, *, regular: bool) -> bool:
    """False where it could not be. `regular`: at a train step that does not depend on when signals come."""
    # Regular ones end a line, so that lines end at the same train steps in every run. One that a signal cut short is
    # written for its reader, and in full when the run goes on.
    if not regular:
        position = dataclasses.replace(position, window=run.report.unfinished())
    run.report.flush(state)
    with run.report.spent.on("checkpoint"):
        return _save_now(run, position, state, regular=regular)


def _save_now(run: _Run, position: Position, state: TrainState, *, regular: bool) -> bool:
    if position.train_step in run.checkpoints.all():
        if regular:
            run.guard.checkpoint(position.train_step, finite=True)
        return True
    sound, before = soundness(state), run.guard.good
    if not sound.finite:
        return _not_finite(run, position)
    if regular:
        run.guard.checkpoint(position.train_step, sound.finite)
    position = dataclasses.replace(position, guard=run.guard.to_json(), seconds=run.report.seconds)
    run.history.flush()
    try:
        checkpoint = Checkpoint(state, position.to_json(), run.job.identity, sound.checksums)
        run.checkpoints.save(position.train_step, checkpoint, pinned=run.guard.pinned)
    except UserError as problem:
        run.guard.good = before
        run.history.decided([{"event": "not saved", "train_step": position.train_step, "reason": str(problem)}])
        return False
    run.report.event("checkpoint", position, state)
    return True


def _not_finite(run: _Run, position: Position) -> bool:
    """Such a state is never saved; the run goes back to the last good one."""
    now = position.train_step
    run.history.decided([run.guard.ask_rollback(now, now, "the state is not finite")])
    return False


@contextlib.contextmanager
def _full_disk(workdir: Path):
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {workdir} is full ({error.strerror}); the checkpoints there are whole. Make room, and the "
            "same command goes on from the newest"
        ) from error


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
