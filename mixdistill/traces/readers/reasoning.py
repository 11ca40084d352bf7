"""R1 style: the whole text of a reasoning model beside its question, in `model_answer` or in "NAME (question)".

The text stays as it was written: <think> tags, a bare </think>, "think" and "answer" lines, or no reasoning at all
where the maker hides it. Segmentation and grading know these marks."""

import re
from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit

NAMED = re.compile(r"(.+) \(question\)")
HIDDEN = "{} thinking_token_count"


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "question" in row and bool(_fields(row))


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each model in the row."""
    fields = _fields(row)
    if not fields:
        raise Unfit("no field model_answer or 'NAME (question)' in the row")
    prompt, reference = lookup.prompt(row), lookup.answer_of(row.get("answer"))
    for field, teacher in fields.items():
        if not isinstance(row[field], str):
            yield Unfit("a model's answer is not text")
            continue
        hidden = row.get(HIDDEN.format(field))
        meta = {"hidden_tokens": hidden} if isinstance(hidden, int) else {}
        yield Draft(prompt, row[field], teacher=teacher, reference=reference, meta=meta)


def _fields(row: Mapping) -> dict[str, str]:
    """Field -> teacher; "" where the field names none."""
    fields = {"model_answer": lookup.teacher(row)} if "model_answer" in row else {}
    named = ((name, NAMED.fullmatch(name)) for name in row if isinstance(name, str))
    return fields | {name: match[1].rsplit("/", 1)[-1] for name, match in named if match}
