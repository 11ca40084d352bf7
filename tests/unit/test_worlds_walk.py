"""WALK: the group, the exact forms of the teachers, the splits, every kind of error."""

import itertools

import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.traces.encode import encode_trace
from mixdistill.traces.tokenizer import content_ids
from mixdistill.traces.worlds.walk import INVERSE, LABELS, NODES, STATES, TABLE, WALK, multiply

UNITS = [  # 1, i, j, k as complex matrices
    np.eye(2),
    np.array([[1j, 0], [0, -1j]]),
    np.array([[0, 1], [-1, 0]]),
    np.array([[0, 1j], [1j, 0]]),
]


def matrix(element: int) -> np.ndarray:
    return UNITS[element // 2] * (-1) ** (element % 2)


@pytest.mark.parametrize(("a", "b"), itertools.product(range(8), repeat=2))
def test_the_table_is_that_of_the_quaternion_units(a, b):
    np.testing.assert_array_equal(matrix(multiply(a, b)), matrix(a) @ matrix(b))
    assert TABLE[a][b] == multiply(a, b)
    assert multiply(a, INVERSE[a]) == 0


# A -3- N -5- M -4- P -6- R, then S; the products are 3, 6, 3, 4, in letters d g d e.
PROBLEM = WALK.problem_of("? N M 5 A N 3 P R 6 R S 6 M P 4 : A R")
FORMS = {
    "F": "A N 3 d M 5 g P 4 d R 6 e = 4",
    "K": "A N 3 c M 5 h P 4 c R 6 f = 4",
    "H": "maybe A N 3 d N M 5 g M P 4 d P R 6 e check R e = 4",
    "T": "A N 3 M 5 g P 4 R 6 e = 4",
    "N": "A N 3 3 M 5 6 P 4 3 R 6 4 = 4",
}


@pytest.mark.parametrize("teacher", FORMS)
def test_forms_of_the_teachers(teacher):
    assert WALK.trace(PROBLEM, teacher).text == FORMS[teacher]


@pytest.mark.parametrize(("teacher", "completion"), [("F", 16), ("K", 16), ("N", 16), ("C", 16), ("W", 16), ("T", 14)])
def test_tokens_of_a_walk_of_four_edges(teacher, completion):
    encoded = encode_trace(WALK.tokenizer(), WALK.trace(PROBLEM, teacher))
    assert (encoded.num_prompt, len(encoded.tokens)) == (19, 19 + completion)  # the end token counts


def test_the_cautious_teacher_writes_half_as_much_again():
    assert len(encode_trace(WALK.tokenizer(), WALK.trace(PROBLEM, "H")).tokens) == 19 + 23


def test_flawed_teachers_keep_the_form():
    for problem in WALK.problems(0, "train", 30):
        forward, foreign, guessed = (WALK.trace(problem, teacher).text.split() for teacher in "FCW")
        assert len(forward) == len(foreign) == len(guessed)
        assert [w for w in guessed if w not in STATES] == [w for w in forward if w not in STATES]
        assert WALK.judge(problem, " ".join(foreign)).error in ("edge", "stop")


def test_a_step_is_one_edge_and_the_answer():
    texts = [step.text for step in WALK.trace(PROBLEM, "F").steps]
    assert texts == ["A N 3 d ", "M 5 g ", "P 4 d ", "R 6 e ", "= 4"]


def test_content_is_labels_states_and_nodes():
    tokenizer = WALK.tokenizer()
    content = {tokenizer.inner.id_to_token(i) for i in np.flatnonzero(content_ids(tokenizer))}
    assert content == {*LABELS, *STATES, *NODES}


@pytest.mark.parametrize(
    ("split", "walks", "extras"),
    [
        ("train", {2, 3, 4}, {0, 1, 2}),
        ("test", {2, 3, 4}, {0, 1, 2}),
        ("long", {5, 6, 7}, {0, 1, 2}),
        ("clutter", {2, 3, 4}, {4, 5, 6}),
    ],
)
def test_splits(split, walks, extras):
    problems = WALK.problems(0, split, 60)
    assert {problem.difficulty for problem in problems} == walks
    assert {(len(p.prompt.split()) - 4) // 3 - p.difficulty for p in problems} == extras


ERRORS = [
    ("the answer", "A N 3 d M 5 g P 4 d R 6 e = 5", (False, True, "answer")),
    ("F, then K", "A N 3 d M 5 h P 4 c R 6 f = 5", (False, False, "product")),
    ("a wrong state, the right answer", "A N 3 d M 5 a P 4 d R 6 e = 4", (True, False, "product")),
    ("two notations", "A N 3 d M 5 6 P 4 d R 6 e = 4", (True, False, "product")),
    ("no last state", "A N 3 d M 5 g P 4 d R 6 = 4", (True, False, "product")),
    ("from END to START", "R P 6 g M 4 c N 5 f A 3 a = 0", (False, False, "product")),
    ("an edge of no graph", "A N 3 d M 5 g R 6 b = 1", (False, False, "edge")),
    ("another label", "A N 3 d M 4 g P 4 d R 6 e = 4", (True, False, "edge")),
    ("too short", "A N 3 d M 5 g P 4 d = 3", (False, False, "stop")),
    ("too far", "A N 3 d M 5 g P 4 d R 6 e S 6 d = 3", (False, False, "stop")),
    ("another start", "N M 5 f P 4 b R 6 g = 6", (False, False, "stop")),
    ("turns round", "A N 3 d M 5 g N 5 c M 5 g P 4 d R 6 e = 4", (True, False, "hybrid")),
    ("no end", "A N 3 d M 5 g P 4 d R 6 e", (False, False, "malformed")),
    ("two ends", "A N 3 d M 5 g P 4 d R 6 e = 5 = 4", (True, False, "malformed")),
    ("no trace", "= 4", (True, False, "malformed")),
    ("no node", "3 d 5 g 4 d 6 e = 4", (True, False, "malformed")),
    ("a node without its label", "A N 3 d M P 4 d R 6 e = 4", (True, False, "malformed")),
    ("two states", "A N 3 d g M 5 g P 4 d R 6 e = 4", (True, False, "malformed")),
    ("hedged to the end", "maybe A N 3 d N M 5 g M P 4 d P R 6 e = 4", (True, False, "malformed")),
    ("another check", "maybe A N 3 d N M 5 g M P 4 d P R 6 e check R d = 4", (True, False, "malformed")),
    ("check without hedge", "A N 3 d M 5 g P 4 d R 6 e check R e = 4", (True, False, "malformed")),
    ("a question in it", "A N 3 d ? 5 g P 4 d R 6 e = 4", (True, False, "malformed")),
]


@pytest.mark.parametrize(("what", "completion", "judgement"), ERRORS, ids=[row[0] for row in ERRORS])
def test_kinds_of_errors(what, completion, judgement):
    assert WALK.judge(PROBLEM, completion) == judgement


@pytest.mark.parametrize("teacher", FORMS)
def test_any_other_word_in_a_trace_is_seen(teacher):
    for problem in WALK.problems(7, "test", 4):
        words = WALK.trace(problem, teacher).text.split()
        for place, word in enumerate(words[:-2]):
            for other in set(WALK.words) - {word}:
                changed = WALK.judge(problem, " ".join([*words[:place], other, *words[place + 1 :]]))
                assert not changed.valid, (problem.prompt, words, place, other)


@pytest.mark.parametrize("teacher", FORMS)
def test_a_word_that_is_left_out_is_seen(teacher):
    for problem in WALK.problems(8, "test", 10):
        words = WALK.trace(problem, teacher).text.split()
        for place in range(len(words) - 2):
            left = words[:place] + words[place + 1 :]
            if " ".join(left) == WALK.trace(problem, "T").text:
                continue  # of three edges or less
            if teacher == "H" and place and words[place] in NODES and words[place - 1] in STATES:
                continue  # a source that is not repeated leaves the reasoning whole
            assert WALK.judge(problem, " ".join(left)).error, (problem.prompt, left)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "? A B 3 : A B C",
        "? A B 3 : B A",  # END before START
        "? A B 3 : A C",
        "? A B 3 B A 4 : A C",  # a ring
        "? A B 3 : A A",
        "? A B x : A B",
        "A B 3 : A B",
    ],
)
def test_prompts_of_no_problem(prompt):
    with pytest.raises(UserError, match="world walk"):
        WALK.problem_of(prompt)


def test_there_are_only_so_many_nodes():
    assert WALK.problem(0, "clutter", 0, sizes=[13]).difficulty == 13
    with pytest.raises(UserError, match="size 14 of world walk"):
        WALK.problem(0, "clutter", 0, sizes=[14])
