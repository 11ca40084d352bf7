"""Finding values in a row: by one of several usual names, or by a dotted path."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixdistill.traces.grade_extract import extract_marked
from mixdistill.traces.readers.row import Draft, Unfit, keys

PROMPT = ("question", "problem", "prompt", "query", "instruction")
COMPLETION = (
    "completion",
    "completions",
    "response",
    "responses",
    "generation",
    "generations",
    "generated_text",
    "model_output",
    "output",
    "outputs",
)
REASONING = ("reasoning_content", "reasoning", "thinking")
REFERENCE = ("reference_answer", "ground_truth", "expected_answer", "reference", "final_answer", "answer")
TEACHER = ("teacher", "generator", "model", "model_name")
SHORT = 64  # characters of a reference that is the answer alone
NO_COMPLETION = "no completion: an empty list"
MISSING = object()


def first(row: Mapping, names: Sequence[str]) -> Any:
    """The first value among `names` that is there and not empty; None if none is."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [], {})), None)


def text(value: object, name: str) -> str:
    """`value` if it is text. Raises `Unfit` naming field `name` otherwise."""
    if isinstance(value, str):
        return value
    kind = "null" if value is None else type(value).__name__
    raise Unfit(f"field {name!r} is {kind}, not text")


def field(row: Mapping, name: str) -> Any:
    """The value of field `name`. Raises `Unfit` when the row lacks it."""
    if name not in row:
        raise Unfit(f"no field {name!r}")
    return row[name]


def scalar(value: object) -> str:
    """A short value as text: "" for None; numbers as they print."""
    return "" if value is None else str(value)


def reference(row: Mapping) -> str:
    """The reference answer under one of its usual names; "" if none."""
    return answer_of(first(row, REFERENCE))


def answer_of(value: object) -> str:
    """A reference answer: the value itself where it is short, the answer that a worked solution marks ("#### 72"), or
    "" where no answer is marked. Harnesses write "# 18" too."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if not isinstance(value, str | int | float):
        return ""
    text = str(value).strip()
    alone = len(text) <= SHORT and "\n" not in text and not text.startswith("####") and "\\boxed" not in text
    return text.removeprefix("# ") if alone else extract_marked(text)


def with_reasoning(thought: object, answer: str) -> str:
    """The completion of a row that holds the chain of thought apart: it goes between <think> tags."""
    if not thought or "</think>" in answer:
        return answer
    return f"<think>\n{text(thought, 'reasoning').strip()}\n</think>\n\n{answer}"


def several(found: object, draft: Draft, thought: object = None) -> Iterator[Draft | Unfit]:
    """`draft` with a completion, or with each of a list of them and its number as `sample`."""
    completions = found if isinstance(found, list) else [found]
    if not completions:
        raise Unfit(NO_COMPLETION)
    for sample, one in enumerate(completions):
        meta = draft.meta | ({"sample": sample} if len(completions) > 1 else {})
        try:
            completion = with_reasoning(thought, text(one, "completion"))
            yield dataclasses.replace(draft, completion=completion, meta=meta)
        except Unfit as unfit:
            yield unfit


def has_prompt(row: Mapping) -> bool:
    """Whether `prompt` would find something."""
    return any(row.get(name) for name in PROMPT)


def prompt(row: Mapping) -> str:
    """The problem under one of its usual names."""
    name = next((name for name in PROMPT if row.get(name)), None)
    if name is None:
        raise Unfit(f"no problem in the row: none of {', '.join(PROMPT)}")
    return text(row[name], name)


def teacher(row: Mapping) -> str:
    """The teacher or model that the row names, without its organisation; "" if none."""
    name = first(row, TEACHER)
    return name.rsplit("/", 1)[-1] if isinstance(name, str) else ""


def at_path(row: Any, path: str) -> Any:
    """The value at a dotted path ("outputs.0.text"); a key that holds dots itself wins. Raises `Unfit`."""
    value = _walk(row, path)
    if value is MISSING:
        has = keys(row) if isinstance(row, Mapping) else type(row).__name__
        raise Unfit(f"no field {path!r}; the row has: {has}")
    return value


def _walk(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        head, _, rest = path.partition(".")
        while rest:
            if head in value and (found := _walk(value[head], rest)) is not MISSING:
                return found
            more, _, rest = rest.partition(".")
            head = f"{head}.{more}"
    elif isinstance(value, list):
        head, _, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(value):
            return _walk(value[int(head)], rest) if rest else value[int(head)]
    return MISSING
