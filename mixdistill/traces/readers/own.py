"""mixdistill's own traces: rows as `Trace.to_json` writes them. Everything, steps and verdict included, is kept."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers.row import Draft, Unfit
from mixdistill.traces.trace import Step, Verdict

FIELDS = {"problem_id", "prompt", "steps", "teacher", "verdict"}


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return row.keys() >= FIELDS


def drafts(row: Mapping) -> Iterator[Draft]:
    """The one trace of the row."""
    try:
        steps = tuple(
            Step(str(step["text"]), tuple(map(float, step.get("token_logprobs") or ()))) for step in row["steps"]
        )
        verdict = Verdict(row["verdict"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unfit("no trace of mixdistill: its steps or its verdict are of another form") from None
    yield Draft(
        row["prompt"],
        "".join(step.text for step in steps),
        teacher=row["teacher"],
        problem_id=row["problem_id"],
        reference=row.get("reference") or "",
        answer=row.get("answer") or "",
        steps=steps,
        verdict=verdict,
        meta=dict(row.get("meta") or {}),
    )
