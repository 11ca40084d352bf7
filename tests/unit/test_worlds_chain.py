"""CHAIN: the group, the exact forms of the teachers, the lengths of their traces, every kind of error."""

import collections
import itertools

import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.traces.encode import encode_trace
from mixdistill.traces.tokenizer import content_ids
from mixdistill.traces.worlds.chain import CHAIN, LETTERS, TABLE, multiply


def permutation(element: int) -> tuple[int, ...]:
    """The element as a symmetry of a pentagon: a turn by k corners, or a mirror followed by it."""
    return tuple((element + (c if element < 5 else -c)) % 5 for c in range(5))


@pytest.mark.parametrize(("a", "b"), itertools.product(range(10), repeat=2))
def test_the_table_is_the_composition_of_symmetries_of_a_pentagon(a, b):
    composed = tuple(permutation(a)[corner] for corner in permutation(b))
    assert permutation(multiply(a, b)) == composed
    assert TABLE[a][b] == multiply(a, b)


PROBLEM = CHAIN.problem_of("? 2 6 4 7 0 :")
FORMS = {  # 2 6 = 8, 8 4 = 9, 9 7 = 2, 2 0 = 2 from the left
    "F": "2 6 8 4 9 7 2 0 2 = 2",
    "B": "0 7 7 4 6 6 0 2 2 = 2",
    "M": "4 7 6 6 0 0 0 2 2 = 2",
    "H": "2 maybe 6 8 maybe 4 9 maybe 7 2 maybe 0 2 check 2 = 2",
    "N": "c g i e j h c a c = 2",
    "S": "2 4 9 0 2 = 2",
    "D": "= 2",
}


@pytest.mark.parametrize("teacher", FORMS)
def test_forms_of_the_teachers(teacher):
    assert CHAIN.trace(PROBLEM, teacher).text == FORMS[teacher]


def test_the_irrelevant_trace_has_the_length_and_form_of_forward_and_answers_this_problem():
    traces = [CHAIN.trace(problem, "C").text.split() for problem in CHAIN.problems(0, "train", 50, sizes=[5])]
    assert {len(words) for words in traces} == {11}
    judged = [CHAIN.judge(p, CHAIN.trace(p, "C").text) for p in CHAIN.problems(0, "train", 50, sizes=[5])]
    assert all(judgement.correct and judgement.error == "order" for judgement in judged)


@pytest.mark.parametrize(
    ("teacher", "completion"), [("F", 12), ("B", 12), ("M", 12), ("N", 12), ("C", 12), ("H", 18), ("S", 8), ("D", 3)]
)
def test_tokens_of_a_trace_of_five_operands(teacher, completion):
    encoded = encode_trace(CHAIN.tokenizer(), CHAIN.trace(PROBLEM, teacher))
    assert encoded.num_prompt == 7
    assert len(encoded.tokens) == 7 + completion  # the end token counts
    assert CHAIN.tokenizer().decode(encoded.tokens[slice(*encoded.answer)]) == "2"


def test_a_step_is_one_multiplication_and_the_answer():
    trace = CHAIN.trace(PROBLEM, "H")
    assert [step.text for step in trace.steps] == [
        "2 maybe 6 8 ",
        "maybe 4 9 ",
        "maybe 7 2 ",
        "maybe 0 2 ",
        "check 2 ",
        "= 2",
    ]


def test_content_is_digits_and_letters():
    tokenizer = CHAIN.tokenizer()
    content = {tokenizer.inner.id_to_token(i) for i in np.flatnonzero(content_ids(tokenizer))}
    assert content == {*map(str, range(10)), *LETTERS}


def test_coverage_is_uniform_over_the_sizes_given():
    sizes = collections.Counter(p.difficulty for p in CHAIN.problems(0, "train", 300, sizes=[3, 4]))
    assert set(sizes) == {3, 4}
    assert min(sizes.values()) > 110


ERRORS = [
    ("F", "2 6 8 4 9 7 2 0 2 = 3", (False, True, "answer")),
    ("F", "2 6 8 4 9 7 2 0 3 = 3", (False, False, "arithmetic")),
    ("F", "2 6 8 4 9 7 2 0 3 = 2", (True, False, "arithmetic")),  # 2*0 = 0*2 = 2
    ("B on F's side", "0 7 7 4 8 6 2 2 4 = 4", (False, False, "side")),  # 7*4 = 8, 4*7 = 6
    ("F, then B", "2 6 8 0 8 7 1 4 0 = 0", (False, False, "order")),
    ("an operand of no problem", "2 5 7 4 8 7 1 0 1 = 1", (False, False, "order")),
    ("F in two notations", "2 6 8 e j 7 2 0 2 = 2", (True, False, "notation")),
    ("no end", "2 6 8 4 9 7 2 0 2", (False, False, "malformed")),
    ("an odd pair", "2 6 8 4 9 7 2 0 = 2", (True, False, "malformed")),
    ("two answers", "2 6 8 4 9 7 2 0 2 = 3 = 2", (True, False, "malformed")),
    ("more than the answer", "2 6 8 4 9 7 2 0 2 = 2 2", (True, False, "malformed")),
    ("a mark inside", "2 6 8 : 9 7 2 0 2 = 2", (True, False, "malformed")),
    (
        "the check claims another state",
        "2 maybe 6 8 maybe 4 9 maybe 7 2 maybe 0 2 check 3 = 2",
        (True, False, "malformed"),
    ),
    ("no trace, wrong", "= 3", (False, True, "answer")),
    ("too early", "2 6 8 4 9 = 2", (True, False, "order")),
]


@pytest.mark.parametrize(("what", "completion", "judgement"), ERRORS, ids=[row[0] for row in ERRORS])
def test_kinds_of_errors(what, completion, judgement):
    assert CHAIN.judge(PROBLEM, completion) == judgement


def test_reductions_that_no_teacher_writes_are_valid_when_neighbours_are_joined():
    assert CHAIN.judge(PROBLEM, "6 4 7 7 0 0 0 2 2 = 2") == (True, True, "")


@pytest.mark.parametrize("teacher", ["F", "B", "M", "H", "N", "S"])
def test_any_other_state_or_operand_is_seen(teacher):
    # Equal operands may leave two valid readings: 4 6 4 reduces from either end with the same words.
    distinct = [p for p in CHAIN.problems(7, "test", 20) if len(set(p.prompt.split())) == p.difficulty + 2]
    assert len(distinct) > 4
    for problem in distinct:
        words = CHAIN.trace(problem, teacher).text.split()
        names = LETTERS if teacher == "N" else tuple(map(str, range(10)))
        for place in [i for i, word in enumerate(words[:-2]) if word in names]:
            for name in set(names) - {words[place]}:
                changed = CHAIN.judge(problem, " ".join([*words[:place], name, *words[place + 1 :]]))
                assert changed.correct
                assert not changed.valid


@pytest.mark.parametrize("prompt", ["", "? 3 :", "3 4 5 :", "? 3 4 5", "? 3 x 5 :", "? 3 12 5 :"])
def test_prompts_of_no_problem(prompt):
    with pytest.raises(UserError, match="world chain"):
        CHAIN.problem_of(prompt)


def test_a_product_has_two_operands_at_least():
    with pytest.raises(UserError, match="at least 2"):
        CHAIN.problem(0, "train", 0, sizes=[1])
