"""COUNTDOWN: reach the target from the numbers, each used once, with + - * / (the task of arXiv:2404.03683).

Prompt "target T numbers a b c :". A trace is a search, one attempt a step: "at a b c try a + b = d", and, where one
number is left, "hit" or "miss". The completion ends with "solution" and the operations that lead to the target. Results
are whole numbers from 1 to 99. Every order of search is valid as long as its bookkeeping is right.
"""

import functools
import random
import re
from collections.abc import Callable, Sequence

from mixdistill.errors import UserError
from mixdistill.traces.worlds.arithmetic_search import (
    LARGEST,
    Attempt,
    Expand,
    Question,
    State,
    attempts,
    breadth_first,
    depth_first,
    in_order,
    nearest,
    reversed_order,
    solution,
)
from mixdistill.traces.worlds.world import Judgement, Split, Teacher, World

OPERANDS = range(1, 13)
SIZES = range(2, 5)
MAX_ATTEMPTS = 60  # of the depth-first search, in problems that are asked: four numbers may take thousands
TARGETS = {"near": range(10, 41), "far": range(41, 71)}
ERRORS = ("malformed", "state", "arithmetic", "verdict", "repeated", "unfinished", "solution")

OPERATION = re.compile(r"([0-9]+) ([-+*/]) ([0-9]+) = ([0-9]+)")
ATTEMPT = re.compile(rf"at((?: [0-9]+)+) try {OPERATION.pattern}( hit| miss|)")
OPERATIONS = re.compile(rf"{OPERATION.pattern}(?: {OPERATION.pattern})*")
PROMPT = re.compile(r"target ([0-9]+) numbers((?: [0-9]+)+) :")
COMPLETION = re.compile(rf"((?:{ATTEMPT.pattern} )+)solution {OPERATIONS.pattern}")


def draw(rng: random.Random, split: Split, size: int) -> str:
    """`size` numbers and a target of the family's range that they reach."""
    if size not in SIZES:
        raise UserError(f"size {size} of world countdown: it takes {SIZES[0]} to {SIZES[-1]} numbers")
    while True:
        numbers = tuple(sorted(rng.choice(OPERANDS) for _ in range(size)))
        question = Question(_some_result(rng, numbers), numbers)
        if question.target in TARGETS[split.family] and _difficulty(question) <= MAX_ATTEMPTS:
            return _joined("target", question.target, "numbers", *numbers, ": ")


def _some_result(rng: random.Random, state: State) -> int:
    """Of random attempts until one number is left; 0 when they end before."""
    for _ in state[1:]:
        possible = [*attempts(state)]
        if not possible:
            return 0
        state = rng.choice(possible).left
    return state[0]


@functools.lru_cache(maxsize=256)
def _reference(question: Question) -> list[Attempt]:
    return depth_first(question, in_order)


def _difficulty(question: Question) -> int:
    return len(_reference(question))


def read(prompt: str) -> Question:
    """Target and numbers. Raises `UserError` where there are none, or no way to the target."""
    match = PROMPT.fullmatch(_joined(*prompt.split()))
    question = Question(int(match[1]), tuple(sorted(map(int, match[2].split())))) if match else None
    if question and len(question.numbers) in SIZES:
        made = _reference(question)
        if made and made[-1].left == (question.target,):
            return question
    form = f"'target T numbers a b .. :' with {SIZES[0]} to {SIZES[-1]} numbers and a solution"
    raise UserError(f"not a problem of world countdown: {prompt[:80]!r}; it is {form}")


def judge(question: Question, completion: str) -> Judgement:
    """Correct is any solution, valid any search that ends with a hit. The errors: words that form no search; a state
    that no attempt has left; an operation that is wrong or not possible there; a wrong hit or miss; an attempt made
    twice; a search that does not end with its first hit; then a solution that is none."""
    match = COMPLETION.fullmatch(_joined(*completion.split()))
    correct = solves(question, extract(completion))
    trace = _check(question, ATTEMPT.findall(match[1])) if match else "malformed"
    return Judgement(correct, not trace, trace or ("" if correct else "solution"))


def solves(question: Question, operations: str) -> bool:
    """Whether the operations, in this order, use every number once and give the target."""
    if not OPERATIONS.fullmatch(operations):
        return False
    state = question.numbers
    for a, sign, b, result in OPERATION.findall(operations):
        attempt = _possible(state, a, sign, b, result)
        if attempt is None:
            return False
        state = attempt.left
    return state == (question.target,)


def extract(completion: str) -> str:
    """The operations."""
    _, mark, rest = completion.rpartition("solution")
    return rest.strip() if mark else ""


def _check(question: Question, lines: Sequence[tuple[str, ...]]) -> str:
    known, made, hit = {question.numbers}, set(), False
    for state_text, a, sign, b, result, verdict in lines:
        state = tuple(map(int, state_text.split()))
        if hit:
            return "unfinished"
        if state not in known:
            return "state"
        attempt = _possible(state, a, sign, b, result)
        if attempt is None:
            return "arithmetic"
        if verdict != _verdict(question, attempt):
            return "verdict"
        if attempt in made:
            return "repeated"
        made.add(attempt)
        known.add(attempt.left)
        hit = verdict == " hit"
    return "" if hit else "unfinished"


def _possible(state: State, a: str, sign: str, b: str, result: str) -> Attempt | None:
    low, high = sorted((int(a), int(b)))
    first, second = (low, high) if sign in "+*" else (int(a), int(b))
    attempt = Attempt(state, first, sign, second, int(result))
    return attempt if attempt in attempts(state) else None


def _verdict(question: Question, attempt: Attempt) -> str:
    if len(attempt.left) > 1:
        return ""
    return " hit" if attempt.result == question.target else " miss"


def _joined(*words: object) -> str:
    return " ".join(map(str, words))


def _steps(question: Question, made: Sequence[Attempt], way: Sequence[Attempt]) -> list[str]:
    lines = [f"at {_joined(*attempt.state)} try {attempt.text}{_verdict(question, attempt)}" for attempt in made]
    return [*lines, _joined("solution", *(attempt.text for attempt in way))]


def _searcher(search: Callable[[Question, Expand], list[Attempt]], expand: Expand) -> Callable:
    def write(question: Question, rng: random.Random) -> list[str]:
        made = search(question, expand)
        return _steps(question, made, solution(made))

    return write


def _direct(question: Question, rng: random.Random) -> list[str]:
    way = solution(_reference(question))
    return _steps(question, way, way)


def _irrelevant(question: Question, rng: random.Random) -> list[str]:
    other = question
    while other.numbers == question.numbers:
        other = read(draw(rng, Split("train", (), "near"), len(question.numbers)))
    return _steps(other, _reference(other), solution(_reference(question)))


TEACHERS = {
    "D": Teacher(_searcher(depth_first, in_order), "depth-first, in the order of the numbers"),
    "R": Teacher(_searcher(depth_first, reversed_order), "depth-first, in the opposite order"),
    "H": Teacher(_searcher(depth_first, nearest), "depth-first, first what comes nearest to the target"),
    "B": Teacher(_searcher(breadth_first, in_order), "breadth-first"),
    "O": Teacher(_direct, "no search: the attempts of a solution alone"),
    "C": Teacher(_irrelevant, "the search of another problem, then a solution", sound=False),
}

COUNTDOWN = World(
    name="countdown",
    words=(
        *("target", "numbers", ":", "at", "try", "+", "-", "*", "/", "=", "hit", "miss", "solution"),
        *map(str, range(1, LARGEST + 1)),
    ),
    splits={
        "train": Split("train", (3,), "near"),
        "validation": Split("validation", (3,), "near"),
        "test": Split("test", (3,), "near"),
        "far": Split("test", (3,), "far"),
        "more": Split("test", (4,), "near"),
    },
    teachers=TEACHERS,
    errors=ERRORS,
    draw=draw,
    read=read,
    answer=lambda question: _joined(*(attempt.text for attempt in solution(_reference(question)))),
    measure=_difficulty,
    judge_question=judge,
    extract=extract,
)
