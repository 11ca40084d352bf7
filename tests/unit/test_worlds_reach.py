"""REACH: the graphs, the exact forms of the teachers, every class of error."""

import random

import pytest

from mixdistill.errors import UserError
from mixdistill.traces.worlds.reach import REACH, TEACHERS

# A has the children B and C; D and P hang on B and C. Z, Y, X, Q, R, S are out of reach; X leads into C.
PROBLEM = REACH.problem_of(
    "A to B . A to C . Q to R . C to P . B to D . L to Q . Q to C . L to S . which of R P Q S from A :"
)
FORMS = {
    "F": "from A see B C from B see D from C see P so P",
    "D": "from A see B C from B see D from D see nothing from C see P so P",
    "B": "into R see Q into Q see L into L see nothing not R into P see C into C see A Q so P",
    "H": "maybe from A see B C maybe from B see D maybe from C see P check A C P so P",
    "N": "from a see b c from b see d from c see p so P",
    "T": "path A C P so P",
}


@pytest.mark.parametrize("teacher", FORMS)
def test_forms_of_the_teachers(teacher):
    assert REACH.trace(PROBLEM, teacher).text == FORMS[teacher]


def closure(prompt: str) -> set[str]:
    """All that the source leads to, by adding edges until nothing is new."""
    words = prompt.split()
    edges = [(words[i - 1], words[i + 1]) for i, word in enumerate(words) if word == "to"]
    reached, before = {words[-2]}, 0
    while len(reached) > before:
        before = len(reached)
        reached |= {v for u, v in edges if u in reached}
    return reached


@pytest.mark.parametrize("split", REACH.splits)
def test_exactly_one_candidate_is_within_reach_as_far_as_the_size_says(split):
    for problem in REACH.problems(0, split, 40):
        words = problem.prompt.split()
        candidates = words[words.index("of") + 1 : words.index("of") + 5]
        assert closure(problem.prompt) & set(candidates) == {problem.answer}
        assert problem.difficulty in REACH.splits[split].sizes
        path = REACH.trace(problem, "T").steps[0].text.split()[1:]
        assert len(path) == problem.difficulty + 1


def test_the_answer_has_no_favourite_place():
    places = [
        p.prompt.split().index("of") - p.prompt.split().index(p.answer, p.prompt.split().index("of")) for p in MANY
    ]
    assert min(places.count(-place) for place in range(1, 5)) > 0.18 * len(MANY)


MANY = REACH.problems(0, "train", 400)


def test_splits_differ_in_length_and_in_branches():
    edges = {s: [p.prompt.count(" to ") for p in REACH.problems(0, s, 30, sizes=[3])] for s in ("test", "bushy")}
    assert set(edges["test"]) == {11}
    assert set(edges["bushy"]) == {14}
    assert {p.difficulty for p in REACH.problems(0, "long", 40)} == {5, 6, 7}


def test_breadth_and_depth_first_look_at_the_same_nodes_in_other_orders():
    differ = [REACH.trace(p, "F").text != REACH.trace(p, "D").text for p in REACH.problems(0, "bushy", 50)]
    assert sum(differ) > 10


CHANGES = [
    ("F", "a node not seen", "from B see D", "from D see nothing", "unseen"),
    ("F", "twice", "from B see D", "from A see B C", "repeated"),
    ("F", "a neighbour too few", "see B C", "see B", "edges"),
    ("F", "a neighbour too many", "see D", "see D P", "edges"),
    ("F", "nothing where there is something", "see D", "see nothing", "edges"),
    ("F", "another neighbour", "see P", "see Q", "edges"),
    ("F", "too early", " from C see P", "", "unfinished"),
    ("F", "too late", " so", " from D see nothing so", "unfinished"),
    ("F", "both directions", " so", " into C see A Q so", "mixed"),
    ("F", "two notations", "from B see D", "from b see d", "malformed"),
    ("F", "no trace", "from A see B C from B see D from C see P ", "", "malformed"),
    ("F", "no look", "from B see D", "from B D", "malformed"),
    ("F", "an unknown word", "from B", "maybe B", "malformed"),
    ("F", "the answer twice", " so", " so P so", "malformed"),
    ("B", "dismissed too early", "into L see nothing not R", "not R into L see nothing", "unfinished"),
    ("B", "dismissed although it is within reach", "not R into P see C into C see A Q", "not P", "unfinished"),
    ("B", "no candidate", "not R", "not L", "unfinished"),
    ("B", "dismissed twice", "not R", "not R not R", "repeated"),
    ("B", "a node not seen", "into L", "into A", "unseen"),
    ("B", "twice", "into L see nothing", "into Q see L", "repeated"),
    ("B", "a parent too few", "see A Q", "see A", "edges"),
    ("B", "too early", " into C see A Q", "", "unfinished"),
    ("H", "a check by no edge", "check A C P", "check A B P", "edges"),
    ("H", "a check of another node", "check A C P", "check A C", "edges"),
    ("H", "a check in between", "maybe from C see P check A C P", "check A C P maybe from C see P", "malformed"),
    ("T", "no edge", "path A C P", "path A B P", "edges"),
    ("T", "not from the source", "path A C P", "path C P", "edges"),
    ("T", "not to the answer", "path A C P", "path A C", "edges"),
    ("T", "a look too", "path A C P", "path A C P from A see B C", "malformed"),
]


@pytest.mark.parametrize(
    ("teacher", "what", "old", "new", "error"), CHANGES, ids=[" ".join(row[:2]) for row in CHANGES]
)
def test_kinds_of_errors(teacher, what, old, new, error):
    assert old in FORMS[teacher]
    assert REACH.judge(PROBLEM, FORMS[teacher].replace(old, new, 1)) == (True, False, error)


@pytest.mark.parametrize("teacher", FORMS)
def test_a_wrong_answer_after_a_right_trace(teacher):
    assert REACH.judge(PROBLEM, FORMS[teacher].removesuffix("P") + "Q") == (False, True, "answer")


@pytest.mark.parametrize("teacher", FORMS)
def test_any_other_word_in_a_trace_is_seen(teacher):
    rng = random.Random(0)
    for problem in REACH.problems(7, "test", 5):
        words = REACH.trace(problem, teacher).text.split()
        for place, word in enumerate(words[:-2]):
            if words[place - 1] == "not" or words[place + 1 : place + 3] == ["see", "nothing"]:
                continue  # another true statement of this kind may stand here: searches in any order are valid
            for other in rng.sample(sorted(set(REACH.words) - {word}), 10):
                changed = " ".join([*words[:place], other, *words[place + 1 :]])
                assert not REACH.judge(problem, changed).valid, (problem.prompt, changed)


def test_the_irrelevant_trace_is_well_formed():
    errors = {REACH.judge(p, REACH.trace(p, "C").text).error for p in REACH.problems(0, "train", 30)}
    assert errors <= {"unseen", "edges"}
    assert not TEACHERS["C"].sound


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "A to B . which of C D from A :",  # none within reach
        "A to B . A to C . which of B C from A :",  # two
        "A to B . which of A C from A :",  # the source itself
        "A to B . which of B C from A",
        "A B . which of B C from A :",
        "A to B . which of B C from :",
    ],
)
def test_prompts_of_no_problem(prompt):
    with pytest.raises(UserError, match="world reach"):
        REACH.problem_of(prompt)


def test_there_are_only_so_many_nodes():
    assert REACH.problem(0, "bushy", 0, sizes=[5]).difficulty == 5
    with pytest.raises(UserError, match=r"size 6 of world reach.*1\.\.5"):
        REACH.problem(0, "bushy", 0, sizes=[6])
