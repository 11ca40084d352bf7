"""Task: problems and how answers to them are judged. Of a built-in world, by its exact verifier; or of the problems
behind recorded traces, by the grader that graded the traces."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.errors import UserError, unknown
from mixdistill.traces import grade, grade_extract
from mixdistill.traces.shards import Shards
from mixdistill.traces.trace import Verdict
from mixdistill.traces.worlds.world import Problem, World


class Judged(NamedTuple):
    """What is said of one completion."""

    correct: bool
    error: str  # the first thing that is wrong, "" where nothing is
    answer: str  # as it stands in the completion; "" where there is none
    valid: bool | None = None  # the reasoning before the answer; None: nobody can tell


class Task(NamedTuple):
    """`judge(problems, completions)`; `errors` are the kinds of error that it knows."""

    name: str
    problems: tuple[Problem, ...]
    judge: Callable[[Sequence[Problem], Sequence[str]], list[Judged]]
    errors: tuple[str, ...]


def world_task(world: World, split: str, count: int, *, seed: int = 0) -> Task:
    """`count` problems of a split of a world. Raises `UserError` for an unknown split."""
    problems = tuple(world.problems(seed, split, count))
    return Task(f"{world.name}/{split}", problems, functools.partial(_judge_by_world, world), world.errors)


def shards_task(shards: Shards, folds: Sequence[str] | None = None, count: int | None = None) -> Task:
    """The problems of the traces of these folds (None: all) that have a reference answer, each once, in the order of
    their ids; the first `count`. Difficulty is what `meta["difficulty"]` of the trace says, 0 where it says nothing.
    Raises `UserError` for an unknown fold, and where no problem is left."""
    problems = list(_problems(shards, folds))[:count]
    if not problems:
        raise UserError(f"no problem of {shards.path} in folds {folds or 'all'} has a reference answer to compare with")
    name = "/".join([shards.path.name, *(folds or ())])
    return Task(name, tuple(problems), _judge_by_grading, ("no answer", "wrong answer", "unverified"))


def _problems(shards: Shards, folds: Sequence[str] | None):
    for name in folds or ():
        if name not in shards.folds:
            raise unknown(f"fold of {shards.path}:", name, shards.folds)
    wanted = np.isin(shards.index["fold"], [shards.folds.index(name) for name in folds or shards.folds])
    places = np.flatnonzero(wanted)
    _, first = np.unique(shards.index["problem"][places], return_index=True)
    for index in places[first]:
        trace = shards[int(index)].trace
        if trace.reference:
            difficulty, fold = int(trace.meta.get("difficulty", 0)), str(trace.meta.get("fold") or "")
            yield Problem(trace.problem_id, trace.prompt, trace.reference, difficulty, fold)


def _judge_by_world(world: World, problems: Sequence[Problem], completions: Sequence[str]) -> list[Judged]:
    found = []
    for problem, text in zip(problems, completions, strict=True):
        correct, valid, error = world.judge(problem, text)
        found.append(Judged(correct, error, world.extract(text), valid))
    return found


def _judge_by_grading(problems: Sequence[Problem], completions: Sequence[str]) -> list[Judged]:
    answers = [grade_extract.extract(text) for text in completions]
    verdicts = grade.compare([(answer, p.answer) for p, answer in zip(problems, answers, strict=True)])
    return [
        Judged(verdict is Verdict.CORRECT, _kind(verdict, answer), answer)
        for verdict, answer in zip(verdicts, answers, strict=True)
    ]


def _kind(verdict: Verdict, answer: str) -> str:
    if verdict is Verdict.CORRECT:
        return ""
    if not answer:
        return "no answer"
    return "unverified" if verdict is Verdict.UNVERIFIED else "wrong answer"
