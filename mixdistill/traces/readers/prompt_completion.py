"""Prompt and completion (TRL, MLX, servers' logs): text, or messages on both sides; a list of completions is several
traces."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import chat, lookup
from mixdistill.traces.readers.row import Draft, Unfit


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "prompt" in row and any(name in row for name in lookup.COMPLETION)


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each completion."""
    prompt, found = row.get("prompt"), lookup.first(row, lookup.COMPLETION)
    if isinstance(prompt, list):
        answer = found if isinstance(found, list) else [{"role": "assistant", "content": found}]
        yield from chat.drafts(row, chat.openai(prompt + answer))
        return
    reference = lookup.reference(row)
    draft = Draft(lookup.text(prompt, "prompt"), "", teacher=lookup.teacher(row), reference=reference)
    yield from lookup.several(found, draft, lookup.first(row, lookup.REASONING))
