"""OpenAI messages: {role, content}, the content a string or typed parts, reasoning as a part or a field of its own."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import chat, lookup
from mixdistill.traces.readers.row import Draft, Unfit

FIELDS = ("messages", "conversations", "conversation")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return any(chat.is_list_of(row.get(name), "role") for name in FIELDS)


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """The first exchange of the conversation."""
    return chat.drafts(row, chat.openai(lookup.first(row, FIELDS)))
