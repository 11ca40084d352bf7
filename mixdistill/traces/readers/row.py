"""What readers pass along: raw rows out of a file, bad rows with the reason, drafts of traces."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mixdistill.traces.trace import Step, Verdict

EXCERPT_CHARACTERS = 120


class Raw(NamedTuple):
    """One row as the file holds it; `line` counts lines (or rows, where there are no lines) from 1."""

    line: int
    value: Any


class BadRow(NamedTuple):
    """A row, or the rest of a file, that is no trace. `line` is 0 when the whole file is meant."""

    file: str
    line: int
    reason: str  # few distinct ones, so that they can be counted; the detail stands in the excerpt
    excerpt: str = ""


class Unfit(Exception):
    """This row cannot become a trace; the message is the reason of its `BadRow`."""


class Damaged(Exception):
    """The file cannot be read on from here; the message is the reason of its last `BadRow`."""


@dataclasses.dataclass
class Draft:
    """A trace as a format finds it in a row; "" is "not said"."""

    prompt: str
    completion: str
    teacher: str = ""
    problem_id: str = ""
    reference: str = ""
    answer: str = ""
    correct: bool | None = None  # the source's own verdict
    logprobs: Any = None
    steps: tuple[Step, ...] = ()  # only where the source divides the completion itself
    verdict: Verdict = Verdict.UNGRADED
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def excerpt(value: object, around: int = 0) -> str:
    """Some characters of a row, from a little before place `around`."""
    text = value if isinstance(value, str) else repr(value)
    start = max(0, around - EXCERPT_CHARACTERS // 2)
    return text[start : start + EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def keys(row: Mapping) -> str:
    """The field names of a row, for a message."""
    return ", ".join(map(str, row)) or "none"
