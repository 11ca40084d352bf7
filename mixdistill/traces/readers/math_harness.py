"""Mathematics evaluation harnesses: lists `code` (the completions), `pred`, `score`, one element a sample."""

import dataclasses
from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return isinstance(row.get("code"), list) and ("pred" in row or "score" in row)


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each sample, with its score."""
    reference = lookup.answer_of(lookup.first(row, ("gt", "answer")))
    draft = Draft(lookup.prompt(row), "", teacher=lookup.teacher(row), reference=reference)
    scores = row.get("score")
    for sample, one in enumerate(lookup.several(lookup.field(row, "code"), draft)):
        score = scores[sample] if isinstance(scores, list) and sample < len(scores) else None
        if isinstance(one, Draft) and isinstance(score, bool):
            one = dataclasses.replace(one, correct=score)
        yield one
