"""Admission: which teachers are mixed at all. From traces to a group of compatible teachers and a recipe to train it.

    admission = admit(Shards.open("shards"), prompts)      # conflict matrix -> groups, best first; no student, no token
    recipe = admitted(recipe, admission)                   # the best group, with the frontier check within the run
    run(recipe, "runs/mixed")

`admit_around` judges by undecidable disagreement with one anchor teacher instead; the anchor's student is trained for
it, and its tokens are taken off the recipe's budget. What is shown and what is not: docs/admission.md.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from mixdistill.data.corpus import open_corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.diagnostics import groups as grouping
from mixdistill.diagnostics.conflict import WIDTH, ConflictMatrix, continuation_conflict
from mixdistill.diagnostics.content import completions, content_traces, sample_traces
from mixdistill.diagnostics.groups import Group, compatible_groups, coverage
from mixdistill.diagnostics.undecidable import THRESHOLD, Undecidable, undecidable_disagreement
from mixdistill.errors import UserError, unknown
from mixdistill.generation.contexts import full
from mixdistill.generation.scoring import BATCH_TOKENS, Runner
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import frontier
from mixdistill.students.student import Params, Student
from mixdistill.traces.encode import encode_prompt
from mixdistill.traces.shards import Shards
from mixdistill.training.loop import run
from mixdistill.training.workdir import open_trained

NUM_TRACES = 1000  # of each teacher, for the conflict matrix; below 200 it fails
NUM_TAUGHT, NUM_SCORED = 500, 300  # traces of each teacher that teach the classifier, and that are scored
CHECK_AT = 0.3  # share of the budget after which the frontier check decides


@dataclasses.dataclass(frozen=True)
class Admission:
    """The groups to choose from, best first, and what they follow from."""

    groups: tuple[Group, ...]
    conflict: ConflictMatrix
    threshold: float  # bits of conflict above which two teachers are kept apart
    anchor: str | None = None
    anchor_nll: float = math.nan  # of its student on its content tokens, nats; above 0.15 the disagreements mean little
    disagreement: Mapping[str, Undecidable] = dataclasses.field(default_factory=dict)  # of each other with the anchor
    tokens: int = 0  # seen by the anchor's student

    @property
    def teachers(self) -> tuple[str, ...]:
        """The best group."""
        return self.groups[0].teachers

    @property
    def apart(self) -> tuple[str, ...]:
        """All others."""
        return tuple(name for name in self.conflict.teachers if name not in self.teachers)


def admit(
    shards: Shards,
    prompts: Sequence[str] = (),
    *,
    num_traces: int = NUM_TRACES,
    threshold: float = grouping.THRESHOLD,
    seed: int = 0,
) -> Admission:
    """By continuation conflict.

    `prompts` state the target problems: a group is the better the more of them are of a kind (a length, in tokens) that
    it has traces for. Without any, all kinds of prompts in the shards count alike.
    """
    conflict = continuation_conflict(content_traces(shards, num_traces, seed=seed))
    kinds = prompt_kinds(shards)
    wanted = _wanted(shards, kinds, prompts)
    found = compatible_groups(shards.teachers, conflict.score, kinds, wanted, threshold=threshold)
    return Admission(tuple(found), conflict, threshold)


def admit_around(
    recipe: Recipe, workdir: Path | str, anchor: str, prompts: Sequence[str] = (), *, num_tokens: int, seed: int = 0
) -> Admission:
    """By undecidable disagreement: trains a student on `anchor` alone, for `num_tokens`, in `workdir`.

    Admitted are the teachers that do not conflict with it. They are not compared with each other, and a teacher without
    data is kept apart. Raises `UserError` for an unknown anchor.
    """
    shards = Shards.open(_recorded(recipe.stages[0]).folders[0])
    if anchor not in shards.teachers:
        raise unknown("anchor", anchor, shards.teachers)
    run(only(recipe, anchor, num_tokens), workdir, quiet=True)
    trained = open_trained(Path(workdir))
    rows = disagreements(trained.student, trained.params, shards, anchor, seed=seed)
    names = tuple(name for name in shards.teachers if name == anchor or rows[name].conflicts() is False)
    kinds = prompt_kinds(shards)
    covered = coverage(set().union(*(kinds[name] for name in names)), _wanted(shards, kinds, prompts))
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
    label, _ = _scores(Runner(student, params, BATCH_TOKENS, jax.local_devices()[:1]), shards, numbers)
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
            scores = _scores(runner, shards, numbers)
            found[name] = undecidable_disagreement(taught[anchor], taught[name], scored, *scores)
    return found


def _scores(runner: Runner, shards: Shards, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def prompt_kinds(shards: Shards) -> dict[str, set[int]]:
    """The lengths of the prompts (tokens) that each teacher has traces for."""
    teacher, length = shards.index["teacher_id"], shards.index["num_prompt"]
    return {name: set(np.unique(length[teacher == k]).tolist()) for k, name in enumerate(shards.teachers)}


def _wanted(shards: Shards, kinds: Mapping[str, Collection[int]], prompts: Sequence[str]) -> dict[int, float]:
    if not prompts:
        return dict.fromkeys(set().union(*kinds.values()), 1.0)
    lengths = [len(encode_prompt(shards.tokenizer, prompt, shards.template)) for prompt in prompts]
    return {length: float(count) for length, count in collections.Counter(lengths).items()}


def reason(admission: Admission) -> str:
    """One sentence: which teachers were kept apart, and why."""
    together, apart = _listed(admission.teachers), admission.apart
    if not apart:
        return f"No teacher was kept apart: {together} do not conflict."
    head = f"{_listed(apart)} {'was' if len(apart) == 1 else 'were'} kept apart from {together}"
    if admission.anchor is not None:
        torn = [f"{name} {admission.disagreement[name].undecidable_late:.2f}" for name in apart]
        return f"{head}: undecidable disagreement with {admission.anchor} is {_listed(torn)} (limit {THRESHOLD:.2f})."
    scores = [admission.conflict.between(a, b) for a, b in itertools.combinations(admission.teachers, 2)]
    return (
        f"{head}, because they continue the same {WIDTH} content tokens differently: conflict "
        f"{_listed([_worst(admission, name) for name in apart])}, against {max(scores, default=0.0):.2f} bits within "
        f"{together} (limit {admission.threshold:.2f})."
    )


def _worst(admission: Admission, name: str) -> str:
    """The teacher of the group that this one conflicts with most."""
    if any(math.isnan(admission.conflict.between(name, other)) for other in admission.teachers):
        return f"{name} unknown for want of traces"
    score, other = max((admission.conflict.between(name, other), other) for other in admission.teachers)
    return f"{other}-{name} {score:.2f}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
