"""Alpaca: instruction, input (the material it speaks of, may be empty), output."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import chat, lookup
from mixdistill.traces.readers.row import Draft, Unfit

COMPLETION = ("output", "response")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "instruction" in row and any(name in row for name in COMPLETION)


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """The one trace of the row; instruction and input stand a blank line apart in the prompt."""
    if row.get("history"):
        raise Unfit(chat.LATER)
    parts = [row.get("instruction"), row.get("input") or ""]
    prompt = "\n\n".join(text for part in parts if (text := lookup.text(part, "instruction or input")))
    meta = {"system": row["system"]} if isinstance(row.get("system"), str) and row["system"] else {}
    draft = Draft(prompt, "", teacher=lookup.teacher(row), reference=lookup.reference(row), meta=meta)
    yield from lookup.several(lookup.first(row, COMPLETION), draft)
