"""Each segmentation rule on texts written here."""

import pytest

from mixdistill.errors import UserError
from mixdistill.traces.segment import segment, segment_trace
from mixdistill.traces.trace import Step, Trace

CASES = [
    ("blank_line", "a\n\nb\n \n\nc", ["a\n\n", "b\n \n\n", "c"]),
    ("line", "a\nb\n\nc", ["a\n", "b\n\n", "c"]),
    ("numbered", "So:\n1. a\n2) b\nStep 3: c", ["So:\n", "1. a\n", "2) b\n", "Step 3: c"]),
    ("numbered", "**Step 1:** a\n### 2. b", ["**Step 1:** a\n", "### 2. b"]),
    ("tags", "<think>a</think>\n\nb", ["<think>a</think>\n\n", "b"]),
    ("tags", "a</think>b<sup>c</sup> d", ["a</think>", "b<sup>c</sup> d"]),
    ("tags", "think\na\nanswer\nb", ["think\na\n", "answer\nb"]),
    ("sentence", "Mr. A has 3.5 m. Then J. adds. Done!", ["Mr. A has 3.5 m. ", "Then J. adds. ", "Done!"]),
    ("sentence", '{"r": "One. Two.\\nThree", "a": 1}', ['{"r": "One. ', "Two.\\n", 'Three", "a": 1}']),
    ("auto", "1. a\n2. b\n\nc", ["1. a\n", "2. b\n\nc"]),
    ("auto", "a\nb\n\nc", ["a\nb\n\n", "c"]),
    ("auto", "a\nb", ["a\n", "b"]),
    ("auto", "A b. C d.", ["A b. ", "C d."]),
    ("auto", "x. Y.\n\nz</think>Ab. Cd.", ["x. Y.\n\n", "z</think>", "Ab. ", "Cd."]),
    ("line", "a\n---\nb", ["a\n---\n", "b"]),
    ("line", "***\na", ["***\na"]),
    ("auto", "", []),
]


@pytest.mark.parametrize(("rule", "text", "steps"), CASES)
def test_rules(rule, text, steps):
    assert [step.text for step in segment(text, rule)] == steps


def test_unknown_rule():
    with pytest.raises(UserError, match="did you mean 'sentence'"):
        segment("a", "sentense")


def whole(text: str, logprobs=(), **meta) -> Trace:
    return Trace("p", "q", (Step(text, logprobs),), "", "t", meta=meta)


def test_steps_of_the_source_stay():
    trace = Trace("p", "q", (Step("a\n\nb"), Step("c")), "", "t")
    assert segment_trace(trace, "blank_line") is trace


def test_log_probabilities_go_with_their_words():
    trace = whole("a\n\nb c", (-1.0, -2.0, -3.0, -4.0), logprob_tokens=["a", "\n\n", "b", " c"])
    divided = segment_trace(trace, "blank_line")
    assert [step.token_logprobs for step in divided.steps] == [(-1.0, -2.0), (-3.0, -4.0)]
    assert "logprob_tokens" not in divided.meta


def test_log_probabilities_without_words_keep_the_trace_whole():
    assert segment_trace(whole("a\n\nb", (-1.0, -2.0)), "blank_line").steps == (Step("a\n\nb", (-1.0, -2.0)),)
