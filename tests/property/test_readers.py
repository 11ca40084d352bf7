"""Whatever stands in a row, a reader makes a trace or a bad row of it, and every trace can be stored."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.traces import readers
from mixdistill.traces.grade_equal import equal
from mixdistill.traces.grade_extract import extract
from mixdistill.traces.readers import FORMATS, BadRow, lookup
from mixdistill.traces.readers.row import Raw, excerpt
from mixdistill.traces.segment import RULES, segment
from mixdistill.traces.trace import Trace

NAMES = st.sampled_from(
    [
        *("conversations", "messages", "chosen", "rejected", "prompt", "completion", "question", "answer", "output"),
        *("instruction", "input", "code", "pred", "score", "gt", "reward_model", "extra_info", "generator", "history"),
        *(
            "chat_history",
            "model_answer",
            "m (question)",
            "problem",
            "trace",
            "teacher",
            "correct",
            "logprobs",
            "tools",
        ),
        *("problem_id", "steps", "verdict", "meta", "text", "token_logprobs", "logprob_counts", "reference", "images"),
        *("role", "from", "value", "content", "type", "loss_weight", "tool_calls", "reasoning", "solution", "a"),
        *("reference_answer", "fold", "sample", "source", "split", "is_correct", "ground_truth", "raw_problem"),
    ]
)
WORDS = st.sampled_from(["user", "gpt", "human", "assistant", "tool", "text", "reasoning", "image_url", "correct", ""])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | WORDS | st.text(max_size=12)
    | st.sampled_from(["['", '["a"]', "['a', 'b']", '[{"role": "user", "content": "q"}]', "{", "\ud800", "#### 2"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=7)


def fed(row: object, drafts) -> list:
    """What `read` makes of one row."""
    from pathlib import Path

    return list(readers._read([Raw(1, row)], drafts, Path("file.jsonl"), "t"))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=80, deadline=None)
@given(row=OBJECTS, values=st.lists(VALUES, min_size=9, max_size=9))
def test_no_row_makes_a_reader_raise(name, row, values):
    # Two rows: any, and one of the fields that this format reads.
    keys = FIELDS[name]
    for one in (row, row | dict(zip(keys, values, strict=False))):
        FORMATS[name].matches(one)
        found = fed(one, FORMATS[name].drafts)
        assert found  # nothing is dropped
        assert all(isinstance(result, Trace | BadRow) for result in found)
        for result in found:
            json.dumps(result.to_json() if isinstance(result, Trace) else result._asdict())


FIELDS = {
    "mixdistill": ("problem_id", "prompt", "steps", "teacher", "verdict", "meta", "logprob_counts", "token_logprobs"),
    "normalised": ("problem", "trace", "teacher", "problem_id", "reference_answer", "correct", "logprobs", "sample"),
    "preference": ("chosen", "rejected", "prompt", "conversations", "messages"),
    "sharegpt": ("conversations", "images", "tools"),
    "messages": ("messages", "images", "tools"),
    "verl": ("prompt", "reward_model", "extra_info", "response"),
    "math-harness": ("question", "code", "pred", "score", "gt"),
    "evaluation": ("output", "generator", "question", "chat_history", "answer"),
    "wide": ("question", "a", "b", "ground_truth"),
    "reasoning": ("question", "model_answer", "m (question)", "answer"),
    "alpaca": ("instruction", "input", "output", "history"),
    "prompt-completion": ("prompt", "completion", "reasoning", "answer"),
    "question-answer": ("question", "answer", "response", "reasoning"),
}


MARKS = ["{", "}", "\\boxed", "**", "$", "\\(", "answer is ", '"answer": ', "=", "√", "1", "/", "\n"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=4), max_size=30).map("".join))
def test_an_answer_is_a_piece_of_any_text_and_compares(text):
    answer = extract(text)
    assert isinstance(answer, str)
    assert equal(answer, text) in (True, False, None)
    assert equal(text, "12") in (True, False, None)
    assert equal(text, text) is True


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='Aab1.)\n #-!"<>/thinkswer', max_size=80), st.sampled_from(sorted(RULES)))
def test_steps_join_to_their_text(text, rule):
    assert "".join(step.text for step in segment(text, rule)) == text


@given(VALUES)
def test_references_and_excerpts_are_text(value):
    assert isinstance(lookup.answer_of(value), str)
    excerpt(value).encode()
