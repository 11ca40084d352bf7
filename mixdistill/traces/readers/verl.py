"""verl's rows: prompt messages, reward_model.ground_truth, extra_info. Without a response they are problems only."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mixdistill.traces.readers import chat, lookup
from mixdistill.traces.readers.row import Draft, Unfit

COMPLETION = ("response", "responses", "output", "outputs", "completion", "completions")


def matches(row: Mapping) -> bool:
    """Whether `row` is of this format."""
    return "reward_model" in row and "prompt" in row


def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
    """One trace for each response."""
    found = lookup.first(row, COMPLETION)
    if found is None:
        raise Unfit("no completion: the row holds a problem only")
    reward = _parsed(lookup.field(row, "reward_model"))
    reference = lookup.answer_of(reward.get("ground_truth")) if isinstance(reward, Mapping) else ""
    yield from lookup.several(found, Draft(_problem(row), "", teacher=lookup.teacher(row), reference=reference))


def _problem(row: Mapping) -> str:
    extra = _parsed(row.get("extra_info"))
    if isinstance(extra, Mapping) and (bare := lookup.first(extra, ("raw_problem", "question", "problem"))):
        return lookup.text(bare, "extra_info")
    prompt = _parsed(lookup.field(row, "prompt"))
    if isinstance(prompt, str):
        return prompt
    asked = [turn.text for turn in chat.openai(prompt) if turn.role == "user"]
    if len(asked) != 1:
        raise Unfit("the prompt is not one question")
    return asked[0]


def _parsed(value: Any) -> Any:
    """The value of a column that was saved as JSON text; other values as they are."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
