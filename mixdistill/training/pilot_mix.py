"""The pilot-mix table: the given student, trained a little on each teacher, on every two, and on all together.

Two numbers are known of every mix: how many held-out problems its pilot answers right, and how likely its own teachers'
held-out content is to it. Judge by the first, and only where the second says that the teachers were learned at all: a
conflict shows late, and a pilot that is too short ranks mixes wrongly in either number.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdistill.diagnostics.content import sample_traces
from mixdistill.errors import UserError, unknown
from mixdistill.evaluation.answers import answer, correctness
from mixdistill.evaluation.intervals import difference, wilson
from mixdistill.evaluation.tasks import Task, shards_task
from mixdistill.students.student import Params, Student
from mixdistill.traces.shards import Shards
from mixdistill.training.pilots import Pilots, Plan, content_nll, read_sequences

MOST = 6  # teachers: 22 pilots
HELD_OUT, ASKED = 0.1, 100  # share of the problems that no pilot is trained on; problems that are answered at most
SCORED_TOKENS = 20_000  # of each teacher's held-out traces
MAX_NEW = 512  # tokens of an answer
LEARNED = 1.0  # nats a content token; a teacher above it was not learned

Mix = tuple[str, ...]


class Pilot(NamedTuple):
    """What came of one mix."""

    teachers: Mix
    correct: np.ndarray | None  # bool [problems]; None: nobody can verify answers to these problems
    own_nll: dict[str, float]  # of each of its teachers, nats a content token
    tokens: int
    seconds: float

    @property
    def learned(self) -> bool:
        """Whether the pilot was long enough for each of its teachers."""
        return all(nll <= LEARNED for nll in self.own_nll.values())


def mixes(teachers: Sequence[str]) -> list[Mix]:
    """Each alone, every two, and all together."""
    every = [(tuple(teachers),)] if len(teachers) > 2 else []
    return [*((name,) for name in teachers), *itertools.combinations(teachers, 2), *itertools.chain(*every)]


def check_teachers(shards: Shards, teachers: Sequence[str]) -> tuple[str, ...]:
    """Those to mix, by default all. Raises `UserError` for unknown ones, and for more than are worth their cost."""
    for name in teachers:
        if name not in shards.teachers:
            raise unknown("teacher", name, shards.teachers)
    chosen = tuple(dict.fromkeys(teachers)) or shards.teachers
    if len(chosen) > MOST:
        raise UserError(
            f"{len(chosen)} teachers are {len(mixes(chosen))} pilots; name at most {MOST} after --pilot, such as a "
            "group of those that do not conflict and one that you doubt"
        )
    return chosen


def pilot_mix(shards: Shards, student: Student, params: Params, teachers: Sequence[str], plan: Plan) -> Iterator[Pilot]:
    """A pilot for each of `mixes`, when it is done. Raises `UserError` for a teacher without traces of the problems
    that pilots are trained on."""
    taught, held = _split(shards, teachers, plan.seed)
    sequences = {name: read_sequences(shards, numbers) for name, numbers in taught.items()}
    task, max_new = _task(shards, held), _longest_answer(shards, taught)
    longest = max(len(sequence.tokens) for of_one in sequences.values() for sequence in of_one)
    pilots = Pilots(student, params, plan, longest)
    for mix in mixes(teachers):
        began = time.perf_counter()
        trained = pilots.train([sequences[name] for name in mix])
        own = {name: content_nll(student, trained, shards, _some(shards, held[name]))[0] for name in mix}
        correct = None
        if task is not None:
            given = answer(student, trained, task, shards.tokenizer, template=shards.template, max_new=max_new)
            correct = correctness(given)
        yield Pilot(mix, correct, own, plan.tokens, time.perf_counter() - began)


def table(pilots: Sequence[Pilot]) -> list[dict[str, Any]]:
    """JSON values, a dict a pilot. `gain` compares a mix with the best of its teachers alone, problem by problem."""
    alone = {pilot.teachers[0]: pilot for pilot in pilots if len(pilot.teachers) == 1}
    return [
        {
            "teachers": list(pilot.teachers),
            "accuracy": None
            if pilot.correct is None
            else wilson(int(pilot.correct.sum()), len(pilot.correct))._asdict(),
            "gain": _gain(pilot, [alone[name] for name in pilot.teachers if name in alone]),
            "own_nll": pilot.own_nll,
            "learned": pilot.learned,
            "tokens": pilot.tokens,
            "seconds": pilot.seconds,
        }
        for pilot in pilots
    ]


def _accuracy(pilot: Pilot) -> dict[str, float] | None:
    correct = pilot.correct
    return None if correct is None else wilson(int(correct.sum()), len(correct))._asdict()


def _gain(pilot: Pilot, alone: Sequence[Pilot]) -> dict[str, Any] | None:
    known = [(int(one.correct.sum()), one.correct, one.teachers[0]) for one in alone if one.correct is not None]
    if len(pilot.teachers) < 2 or pilot.correct is None or not known:
        return None
    _, best, name = max(known, key=lambda one: one[0])
    return {"over": name, **difference(pilot.correct[None], best[None])._asdict()}


def _split(shards: Shards, teachers: Sequence[str], seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Numbers of each teacher's traces: those to train on, and those of the held-out problems, in random order."""
    problem = shards.index["problem"]
    problems = np.random.default_rng(seed).permutation(len(shards.problems))
    kept_out = problems[: max(int(len(problems) * HELD_OUT), 1)]
    chosen = {name: sample_traces(shards, 2**31, seed=seed)[name] for name in teachers}
    held = {name: order[np.isin(problem[order], kept_out)] for name, order in chosen.items()}
    taught = {name: order[~np.isin(problem[order], kept_out)] for name, order in chosen.items()}
    for name, order in taught.items():
        if not len(order):
            raise UserError(f"teacher {name!r} has no trace but of the held-out problems; leave it out of --pilot")
    return taught, held


def _task(shards: Shards, held: dict[str, np.ndarray]) -> Task | None:
    """Held-out problems with a reference answer; None where there is none."""
    numbers = np.unique(np.concatenate(list(held.values())))
    wanted = {shards.problems[k] for k in np.unique(shards.index["problem"][numbers])}
    try:
        task = shards_task(shards)
    except UserError:
        return None
    problems = tuple(problem for problem in task.problems if problem.id in wanted)[:ASKED]
    return task._replace(problems=problems) if problems else None


def _longest_answer(shards: Shards, taught: dict[str, np.ndarray]) -> int:
    """Tokens: what 98 % of the traces keep within."""
    numbers = np.concatenate(list(taught.values()))
    length = (shards.index["num_tokens"] - shards.index["num_prompt"])[numbers]
    return min(int(np.quantile(length, 0.98)) + 1, MAX_NEW)


def _some(shards: Shards, numbers: np.ndarray) -> np.ndarray:
    """The first traces, as many as SCORED_TOKENS allow, one at least."""
    count = int(np.searchsorted(np.cumsum(shards.index["num_tokens"][numbers]), SCORED_TOKENS, side="right"))
    return numbers[: max(count, 1)]
