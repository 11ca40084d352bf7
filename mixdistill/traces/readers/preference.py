"""Preference pairs: the chosen completion is a trace; the rejected one is not read.

A chosen answer late in a conversation is none: it answers the turns before it too."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import chat, lookup
from mixdistill.traces.readers.row import Draft, Unfit

CONTEXT = ("conversations", "messages", "prompt")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "chosen" in row and "rejected" in row


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """The chosen answer to the problem before it."""
    chosen = lookup.field(row, "chosen")
    if isinstance(chosen, list):  # whole conversations that share their beginning
        return chat.drafts(row, _single(chat.openai(chosen)))
    context = lookup.first(row, CONTEXT)
    if not isinstance(context, list):
        return _plain(row)
    turns = [*context, chosen if isinstance(chosen, Mapping) else _answer(chosen)]
    is_openai = chat.is_list_of(context, "role")
    return chat.drafts(row, _single(chat.openai(turns) if is_openai else chat.sharegpt(turns)))


def _single(turns: list[chat.Turn]) -> list[chat.Turn]:
    """The turns, if there is one exchange."""
    if sum(turn.role != "system" for turn in turns) > 2:
        raise Unfit("the chosen answer continues a conversation")
    return turns


def _answer(text: object) -> dict:
    """A turn in either layout."""
    return {"from": "gpt", "value": text, "role": "assistant", "content": text}


def _plain(row: Mapping) -> Iterator[Draft]:
    chosen = lookup.field(row, "chosen")
    text = lookup.text(chosen, "chosen")
    yield Draft(lookup.prompt(row), text, teacher=lookup.teacher(row), reference=lookup.reference(row))
