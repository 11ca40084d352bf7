"""mixdistill's own traces: rows as `Trace.to_json` or `tfds_builder` writes them. Everything is kept, steps and verdict
included. TFDS has no lists of lists: there the steps are texts, with all log-probabilities in one list."""

import json
from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit
from mixdistill.traces.trace import Step, Verdict

FIELDS = {"problem_id", "prompt", "steps", "teacher", "verdict"}


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return row.keys() >= FIELDS


def drafts(row: Mapping) -> Iterator[Draft]:
    """The one trace of the row."""
    try:
        steps = _steps(row)
        verdict = Verdict(row["verdict"])
        meta = row.get("meta") or {}
        meta = dict(json.loads(meta) if isinstance(meta, str) else meta)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError):
        raise Unfit("no trace of mixdistill: its steps or its verdict are of another form") from None
    if "source" in meta:  # it was another file's; ours is noted when the row is read
        meta.setdefault("origin", f"{meta['source']}:{meta.get('line', 0)}")
    yield Draft(
        lookup.field(row, "prompt"),
        "".join(step.text for step in steps),
        teacher=lookup.field(row, "teacher"),
        problem_id=lookup.field(row, "problem_id"),
        reference=row.get("reference") or "",
        answer=row.get("answer") or "",
        steps=steps,
        verdict=verdict,
        meta=meta,
    )


def _steps(row: Mapping) -> tuple[Step, ...]:
    if "logprob_counts" not in row:
        return tuple(
            Step(str(step["text"]), tuple(map(float, step.get("token_logprobs") or ()))) for step in row["steps"]
        )
    values = iter(row["token_logprobs"])
    return tuple(
        Step(str(text), tuple(float(next(values)) for _ in range(count)))
        for text, count in zip(row["steps"], row["logprob_counts"], strict=True)
    )
