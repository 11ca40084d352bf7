"""COUNTDOWN: searches against brute force, the exact form of a trace, every class of error."""

import itertools
import operator
import random

import pytest

from mixdistill.errors import UserError
from mixdistill.traces.worlds.arithmetic_search import Question, attempts, depth_first, in_order
from mixdistill.traces.worlds.countdown import COUNTDOWN, TARGETS, TEACHERS, solves

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def reachable(numbers: tuple[float, ...]) -> set[float]:
    """Every last number, by trying all pairs in both orders."""
    if len(numbers) == 1:
        return set(numbers)
    found: set[float] = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(number for k, number in enumerate(numbers) if k not in (i, j))
        for fn in SIGNS.values():
            result = fn(numbers[i], numbers[j]) if fn is not operator.truediv or numbers[j] else 0
            if result in range(1, 100):
                found |= reachable((*rest, int(result)))
    return found


@pytest.mark.parametrize("numbers", [(1, 2, 3), (2, 2, 8), (3, 7, 12), (1, 1, 1), (4, 6, 11)])
def test_the_search_finds_what_brute_force_finds(numbers):
    can = reachable(numbers)
    for target in range(1, 100):
        made = depth_first(Question(target, numbers), in_order)
        assert (made[-1].left == (target,)) == (target in can)


def test_attempts_are_right_and_leave_one_number_less():
    for state in [(2, 3, 12), (5, 5), (1, 9, 9, 40)]:
        for attempt in attempts(state):
            assert SIGNS[attempt.sign](attempt.a, attempt.b) == attempt.result
            assert len(attempt.left) == len(state) - 1
            assert attempt.left == tuple(sorted(attempt.left))


@pytest.mark.parametrize("split", COUNTDOWN.splits)
def test_problems_have_their_sizes_and_targets(split):
    where = COUNTDOWN.splits[split]
    for problem in COUNTDOWN.problems(0, split, 15):
        question = COUNTDOWN.read(problem.prompt)
        assert len(question.numbers) in where.sizes
        assert question.target in TARGETS[where.family]
        assert question.target in reachable(question.numbers)
        assert problem.difficulty <= 60


@pytest.mark.parametrize("split", ["train", "more"])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_solution_holds_by_plain_arithmetic(teacher, split):
    for problem in COUNTDOWN.problems(1, split, 5):
        question = COUNTDOWN.read(problem.prompt)
        left = list(question.numbers)
        words = COUNTDOWN.trace(problem, teacher).answer.split()
        for a, sign, b, equals, result in itertools.batched(words, 5):
            assert equals == "="
            assert SIGNS[sign](int(a), int(b)) == int(result)
            left.remove(int(a))
            left.remove(int(b))
            left.append(int(result))
        assert left == [question.target]


PROBLEM = COUNTDOWN.problem_of("target 10 numbers 5 6 11 :")
SOLUTION = " solution 6 - 5 = 1 11 - 1 = 10"
FORMS = {
    "D": "at 5 6 11 try 5 + 6 = 11 at 11 11 try 11 + 11 = 22 miss at 11 11 try 11 / 11 = 1 miss"
    " at 5 6 11 try 6 - 5 = 1 at 1 11 try 1 + 11 = 12 miss at 1 11 try 11 - 1 = 10 hit" + SOLUTION,
    "R": "at 5 6 11 try 6 * 11 = 66 at 5 66 try 66 - 5 = 61 miss at 5 66 try 5 + 66 = 71 miss"
    " at 5 6 11 try 11 - 6 = 5 at 5 5 try 5 / 5 = 1 miss at 5 5 try 5 * 5 = 25 miss at 5 5 try 5 + 5 = 10 hit"
    " solution 11 - 6 = 5 5 + 5 = 10",
    "O": "at 5 6 11 try 6 - 5 = 1 at 1 11 try 11 - 1 = 10 hit" + SOLUTION,
}


@pytest.mark.parametrize("teacher", FORMS)
def test_forms_of_the_teachers(teacher):
    assert COUNTDOWN.trace(PROBLEM, teacher).text == FORMS[teacher]


def test_breadth_first_finishes_a_level_and_the_heuristic_goes_to_the_nearest_first():
    lines = [step.text for step in COUNTDOWN.trace(PROBLEM, "B").steps[:-1]]
    first_below = next(i for i, line in enumerate(lines) if not line.startswith("at 5 6 11"))
    assert first_below == len([*attempts((5, 6, 11))])
    assert not any(line.startswith("at 5 6 11") for line in lines[first_below:])
    results = [int(step.text.split()[-1]) for step in COUNTDOWN.trace(PROBLEM, "H").steps if "at 5 6 11" in step.text]
    assert [abs(result - 10) for result in results] == sorted(abs(result - 10) for result in results)


CHANGES = [
    ("a wrong result", "5 + 6 = 11", "5 + 6 = 12", "arithmetic"),
    ("a number that is not there", "6 - 5 = 1 at", "7 - 6 = 1 at", "arithmetic"),
    ("a negative result", "6 - 5 = 1 at", "5 - 6 = 1 at", "arithmetic"),
    ("a state of no attempt", "at 11 11 try 11 + 11 = 22", "at 12 11 try 12 + 11 = 23", "state"),
    ("a state before its attempt", "at 5 6 11 try 6 - 5 = 1 ", "", "state"),
    ("a hit that is none", "22 miss", "22 hit", "verdict"),
    ("a hit not seen", "10 hit", "10 miss", "verdict"),
    ("a verdict too early", "5 + 6 = 11 at", "5 + 6 = 11 miss at", "verdict"),
    ("no verdict", "22 miss", "22", "verdict"),
    ("twice", "at 11 11 try 11 / 11 = 1 miss", "at 11 11 try 11 + 11 = 22 miss", "repeated"),
    ("twice, turned round", "at 11 11 try 11 / 11 = 1 miss", "at 5 6 11 try 6 + 5 = 11", "repeated"),
    ("no hit", "at 1 11 try 11 - 1 = 10 hit ", "", "unfinished"),
    ("goes on", "hit solution", "hit at 5 6 11 try 5 + 11 = 16 solution", "unfinished"),
    ("half an attempt", "5 + 6 = 11", "5 + 6 =", "malformed"),
    ("an unknown word", "try 5 + 6", "go 5 + 6", "malformed"),
    ("no search", FORMS["D"].removesuffix(SOLUTION) + " ", "", "malformed"),
]


@pytest.mark.parametrize(("what", "old", "new", "error"), CHANGES, ids=[row[0] for row in CHANGES])
def test_errors_of_the_search(what, old, new, error):
    assert old in FORMS["D"]
    assert COUNTDOWN.judge(PROBLEM, FORMS["D"].replace(old, new, 1)) == (True, False, error)


SOLUTIONS = [
    ("another target", "6 - 5 = 1 1 + 11 = 12"),
    ("a number left over", "11 - 1 = 10"),
    ("a number used twice", "6 - 5 = 1 11 - 6 = 5 5 + 5 = 10"),
    ("wrong arithmetic", "6 - 5 = 1 11 - 1 = 9"),
    ("wrong on the way", "6 - 5 = 2 11 - 2 = 10"),
]


@pytest.mark.parametrize(("what", "operations"), SOLUTIONS, ids=[row[0] for row in SOLUTIONS])
def test_errors_of_the_solution(what, operations):
    completion = FORMS["D"].removesuffix(SOLUTION) + " solution " + operations
    assert COUNTDOWN.judge(PROBLEM, completion) == (False, True, "solution")


def test_any_solution_counts():
    question = COUNTDOWN.read(PROBLEM.prompt)
    assert solves(question, "11 - 6 = 5 5 + 5 = 10")
    assert COUNTDOWN.verify(PROBLEM, "solution 11 - 6 = 5 5 + 5 = 10")
    assert not solves(question, "")


@pytest.mark.parametrize("teacher", "DRHBO")
def test_any_other_number_or_sign_is_seen(teacher):
    rng = random.Random(0)
    for problem in COUNTDOWN.problems(3, "test", 2):
        words = COUNTDOWN.trace(problem, teacher).text.split()
        for place in range(words.index("solution")):
            for other in rng.sample(sorted(set(COUNTDOWN.words) - {words[place]}), 4):
                changed = " ".join([*words[:place], other, *words[place + 1 :]])
                assert not COUNTDOWN.judge(problem, changed).valid, changed


@pytest.mark.parametrize(
    "prompt",
    [
        "target 99 numbers 1 2 3 :",
        "target 10 numbers 10 :",
        "target 10 numbers 5 6 11",
        "target 10 numbers 1 2 3 4 5 :",
        "target 10 numbers 500 6 :",
        "target x numbers 1 2 :",
    ],
)
def test_prompts_of_no_problem(prompt):
    with pytest.raises(UserError, match="world countdown"):
        COUNTDOWN.problem_of(prompt)


def test_at_most_four_numbers():
    with pytest.raises(UserError, match="size 5 of world countdown"):
        COUNTDOWN.problem(0, "train", 0, sizes=[5])
