"""ShareGPT: conversations of {from, value} turns."""

from collections.abc import Iterator, Mapping

from mixdistill.traces.readers import chat, lookup
from mixdistill.traces.readers.row import Draft, Unfit

FIELDS = ("conversations", "conversation")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return any(chat.is_list_of(row.get(name), "from", "value") for name in FIELDS)


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """The first exchange of the conversation."""
    return chat.drafts(row, chat.sharegpt(lookup.first(row, FIELDS)))
