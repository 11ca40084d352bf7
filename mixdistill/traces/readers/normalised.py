"""One trace a row, all fields named: problem, trace, teacher, and whatever is known of problem_id, fold, answer."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft

META = ("split", "fold", "sample", "licence")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "problem" in row and "trace" in row


def drafts(row: Mapping) -> Iterator[Draft]:
    """The one trace of the row."""
    correct = row.get("correct")
    yield Draft(
        lookup.text(lookup.field(row, "problem"), "problem"),
        lookup.text(lookup.field(row, "trace"), "trace"),
        teacher=lookup.scalar(row.get("teacher")),
        problem_id=lookup.scalar(row.get("problem_id")),
        reference=lookup.scalar(row.get("reference_answer")),
        correct=correct if isinstance(correct, bool) else None,
        logprobs=row.get("logprobs"),
        meta={name: row[name] for name in META if row.get(name) is not None}
        | ({"origin": row["source"]} if row.get("source") else {}),
    )
