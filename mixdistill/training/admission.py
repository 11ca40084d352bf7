"""Admission: which teachers are mixed at all. From traces to a group of compatible teachers and a recipe to train it.

    admission = admit(Shards.open("shards"), prompts)      # conflict matrix -> groups, best first; no student, no token
    recipe = admitted(recipe, admission)                   # the best group, with the frontier check within the run
    run(recipe, "runs/mixed")

`admit_around` judges by undecidable disagreement with one anchor teacher instead; the anchor's student is trained for
it, and its tokens are taken off the recipe's budget. What is shown and what is not: docs/admission.md.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mixdistill.data.corpus import open_corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.diagnostics import groups as grouping
from mixdistill.diagnostics.conflict import continuation_conflict
from mixdistill.diagnostics.content import completions, content_traces, sample_traces
from mixdistill.diagnostics.groups import Group, coverage
from mixdistill.diagnostics.undecidable import Undecidable, undecidable_disagreement
from mixdistill.errors import UserError, unknown
from mixdistill.generation.contexts import full
from mixdistill.generation.scoring import BATCH_TOKENS, Runner
from mixdistill.mesh import Device
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import frontier
from mixdistill.students.student import Params, Student
from mixdistill.traces.shards import Shards
from mixdistill.training.grouping import NUM_TRACES, Admission, admit, cost, prompt_kinds, reason, wanted_kinds
from mixdistill.training.loop import run
from mixdistill.training.workdir import open_trained

__all__ = ["Admission", "admit", "admit_around", "admitted", "cost", "reason"]

NUM_TAUGHT, NUM_SCORED = 500, 300  # traces of each teacher that teach the classifier, and that are scored
CHECK_AT = 0.3  # share of the budget after which the frontier check decides


def admit_around(
    recipe: Recipe,
    workdir: Path | str,
    anchor: str,
    prompts: Sequence[str] = (),
    *,
    num_tokens: int,
    seed: int = 0,
    devices: Sequence[Device] | None = None,
) -> Admission:
    """By undecidable disagreement: trains a student on `anchor` alone, for `num_tokens`, in `workdir`.

    Admitted are the teachers that do not conflict with it. They are not compared with each other, and a teacher without
    data is kept apart. `devices` as in `loop.run`. Raises `UserError` for an unknown anchor.
    """
    shards = Shards.open(_recorded(recipe.stages[0]).folders[0])
    if anchor not in shards.teachers:
        raise unknown("anchor", anchor, shards.teachers)
    run(only(recipe, anchor, num_tokens), workdir, devices=devices, quiet=True)
    trained = open_trained(Path(workdir))
    rows = disagreements(trained.student, trained.params, shards, anchor, seed=seed)
    names = tuple(name for name in shards.teachers if name == anchor or rows[name].conflicts() is False)
    kinds = prompt_kinds(shards)
    covered = coverage(set().union(*(kinds[name] for name in names)), wanted_kinds(shards, kinds, prompts))
    conflict = continuation_conflict(content_traces(shards, NUM_TRACES, seed=seed))
    return Admission(
        (Group(names, covered, math.nan),),
        conflict,
        grouping.THRESHOLD,
        anchor,
        content_nll(trained.student, trained.params, shards, anchor, seed=seed),
        rows,
        trained.tokens,
    )


def content_nll(student: Student, params: Params, shards: Shards, teacher: str, *, seed: int = 0) -> float:
    """Mean surprisal of the content tokens of some of the teacher's traces, nats."""
    numbers = sample_traces(shards, NUM_SCORED, seed=seed)[teacher]
    label, _ = scores(Runner(student, params, BATCH_TOKENS, jax.local_devices()[:1]), shards, numbers)
    return float(-label[completions(shards, numbers).content].mean())


def disagreements(
    student: Student, params: Params, shards: Shards, anchor: str, *, seed: int = 0
) -> dict[str, Undecidable]:
    """Of every other teacher with `anchor`, whose student this is."""
    chosen = sample_traces(shards, NUM_TAUGHT + NUM_SCORED, seed=seed)
    taught = {name: completions(shards, numbers[NUM_SCORED:]) for name, numbers in chosen.items()}
    runner = Runner(student, params, BATCH_TOKENS, jax.local_devices()[:1])
    found = {}
    for name in shards.teachers:
        if name != anchor:
            numbers = chosen[name][:NUM_SCORED]
            scored = completions(shards, numbers)
            asked = scores(runner, shards, numbers)
            found[name] = undecidable_disagreement(taught[anchor], taught[name], scored, *asked)
    return found


def scores(runner: Runner, shards: Shards, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The student's log-probability of each completion token and of its own first choice, nats."""
    _, fields = runner(full(), [shards[int(number)] for number in numbers])
    return fields["label_logprob"].astype(np.float32), fields["top1_logprob"].astype(np.float32)


def admitted(recipe: Recipe, admission: Admission) -> Recipe:
    """The recipe on the best group alone, mixed by what there is of each, with the frontier check. What the anchor's
    student has seen is taken off its last stage. Raises `UserError` if that stage has no such number of tokens."""
    stages = [*recipe.stages[:-1], _shortened(recipe.stages[-1], admission.tokens)]
    size = sum(stage.budget.size for stage in stages)
    return dataclasses.replace(recipe, stages=tuple(_restricted(stage, admission.teachers, size) for stage in stages))


def _restricted(stage: Stage, teachers: tuple[str, ...], budget: int) -> Stage:
    if not isinstance(stage.source, Mixture):
        return stage  # the student's own completions: no teacher is in them
    source = dataclasses.replace(stage.source, teachers=teachers, weights=None)
    shares = weight_vector(open_corpus(source), source)
    check = frontier(shares=tuple(shares.tolist()), check_at=int(CHECK_AT * budget), unit=stage.budget.unit)
    objective = stage.objective
    if objective is not None:
        objective = dataclasses.replace(objective, memory={**objective.memory, "frontier": check})
    return dataclasses.replace(stage, source=source, objective=objective)


def _shortened(stage: Stage, tokens: int) -> Stage:
    if not tokens:
        return stage
    if stage.num_tokens is None or stage.num_tokens <= tokens:
        raise UserError(
            f"the anchor's student has seen {tokens} tokens, which stage {stage.name!r} ({stage.budget.size} "
            f"{stage.budget.unit}) cannot make up for; give it a larger budget in tokens (num_tokens)"
        )
    return dataclasses.replace(stage, num_tokens=stage.num_tokens - tokens)


def only(recipe: Recipe, teacher: str, num_tokens: int) -> Recipe:
    """The first stage of the recipe on one teacher, for `num_tokens`."""
    stage = recipe.stages[0]
    source = dataclasses.replace(_recorded(stage), teachers=(teacher,), weights=None)
    stage = dataclasses.replace(stage, source=source, num_train_steps=None, num_tokens=num_tokens)
    return dataclasses.replace(recipe, stages=(stage,))


def _recorded(stage: Stage) -> Mixture:
    if not isinstance(stage.source, Mixture):
        raise UserError(
            f"stage {stage.name!r} draws from the student; admission needs a first stage of recorded traces"
        )
    return stage.source
