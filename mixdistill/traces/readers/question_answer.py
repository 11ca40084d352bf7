"""A question and its worked answer, under their usual names. Beside a response or a solution, "answer" is the
reference; alone it is the trace, and then nothing independent of it says what is right."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit

SOLUTION = (*lookup.COMPLETION, "solution", "answer")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return lookup.has_prompt(row) and any(name in row for name in SOLUTION)


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each answer."""
    name = next((name for name in SOLUTION if row.get(name)), "answer")
    reference = lookup.reference({key: value for key, value in row.items() if key != name})
    draft = Draft(lookup.prompt(row), "", teacher=lookup.teacher(row), reference=reference)
    yield from lookup.several(row.get(name), draft, lookup.first(row, lookup.REASONING))
