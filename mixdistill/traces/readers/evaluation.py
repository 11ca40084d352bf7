"""Evaluation dumps: the outputs of a generator for a question or a chat history.

Some writers put lists into JSON as the text of a Python literal; it is read as a literal, never evaluated."""

import ast
import warnings
from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit

PROMPT = ("question", "problem", "instruction", "chat_history", "model_input", "prompt")
CONTEXT = {"generator", "chat_history", "model_input", "session_id"}
REFERENCE = ("answer", "correct_answer", "reference_answer", "ground_truth")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "output" in row and bool(CONTEXT & row.keys())


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each output."""
    asked = _list(lookup.first(row, PROMPT))
    if not asked:
        raise Unfit(f"no problem in the row: none of {', '.join(PROMPT)}")
    if len(asked) > 1:
        raise Unfit("a chat history of several turns")
    reference = lookup.answer_of(lookup.first(row, REFERENCE))
    draft = Draft(lookup.text(asked[0], "question"), "", teacher=lookup.teacher(row), reference=reference)
    yield from lookup.several(_list(lookup.field(row, "output")), draft)


def _list(value: object) -> list:
    if isinstance(value, list):
        return value
    if value is None:
        return []
    if not isinstance(value, str) or not value.startswith(("['", '["')):
        return [value]
    return _literal(value) or [value]


def _literal(text: str) -> list[str]:
    """The strings of a Python list literal; none if it is something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # a backslash that Python would rather see doubled
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []
