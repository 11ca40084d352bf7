"""Wide rows: one problem, and an object with a solution for each teacher; the field's name is the teacher."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit

COMPLETION = ("solution", "response", "completion", "output", "answer", "text")
CORRECT = ("is_correct", "correct")
REFERENCE = ("reference_answer", "ground_truth", "answer")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format. An object beside a completion is no teacher but some note on it."""
    return lookup.has_prompt(row) and not any(row.get(name) for name in lookup.COMPLETION) and bool(_teachers(row))


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each teacher."""
    prompt, reference = lookup.prompt(row), lookup.answer_of(lookup.first(row, REFERENCE))
    teachers = _teachers(row)
    if not teachers:
        raise Unfit("no field of the row holds a teacher's solution")
    for teacher in teachers:
        text, correct = lookup.first(row[teacher], COMPLETION), lookup.first(row[teacher], CORRECT)
        if not isinstance(text, str):
            yield Unfit("a teacher's solution is not text")
            continue
        known = correct if isinstance(correct, bool) else None
        yield Draft(prompt, text, teacher=teacher, reference=reference, correct=known)


def _teachers(row: Mapping) -> list[str]:
    """The fields that are an object with a solution."""
    return [
        name
        for name, value in row.items()
        if isinstance(value, Mapping) and lookup.first(value, COMPLETION) is not None
    ]
