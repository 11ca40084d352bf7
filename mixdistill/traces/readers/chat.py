"""Conversations -> drafts: what ShareGPT, OpenAI messages, verl and preference rows have in common.

A trace is one problem and its solution, so the first exchange of a conversation is the trace; what follows depends on
it and is reported as left out. A system prompt goes to `meta`: a student should not need another model's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_call", "observation", "ipython"), "tool"),
}
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
TOOLS, NO_TEXT = "tool calls: their results are not the teacher's words", "images or sound: not text alone"
LATER = "later turns of a conversation"  # of a row whose first exchange is a trace
NOT_LEARNT = "weight 0 in the source: not to be learnt"


class Turn(NamedTuple):
    """One message."""

    role: str  # a value of `ROLES`
    text: str
    learnt: bool = True  # False: the source gives it loss weight 0


def drafts(row: Mapping, turns: Iterable[Turn]) -> Iterator[Draft | Unfit]:
    """The first exchange of `turns` as a draft, and one `Unfit` if there are more. Raises `Unfit` if it is no trace."""
    if any(row.get(name) for name in MEDIA):
        raise Unfit(NO_TEXT)
    system, rest = _split(list(turns))
    if not any(turn.role == "assistant" for turn in rest):
        raise Unfit("no completion: the conversation has no answer")
    if [turn.role for turn in rest[:2]] != ["user", "assistant"]:
        raise Unfit("the conversation does not begin with a question and its answer")
    question, answer = rest[:2]
    if not answer.learnt:
        raise Unfit(NOT_LEARNT)
    meta = {"system": system} if system else {}
    reference, teacher = lookup.reference(row), lookup.teacher(row)
    yield Draft(question.text, answer.text, teacher=teacher, reference=reference, meta=meta)
    if len(rest) > 2:
        yield Unfit(LATER)


def _split(turns: list[Turn]) -> tuple[str, list[Turn]]:
    """The system prompt and the other turns."""
    if any(turn.role == "tool" for turn in turns):
        raise Unfit(TOOLS)
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    return system, [turn for turn in turns if turn.role != "system"]


def is_list_of(value: object, *names: str) -> bool:
    """Whether `value` is a list whose first element is an object with all `names`."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and value[0].keys() >= set(names)


def openai(messages: object) -> list[Turn]:
    """Turns of `{role, content}` messages. Raises `Unfit`."""
    if not isinstance(messages, list):
        raise Unfit("messages are no list")
    return [_openai_turn(message) for message in messages]


def sharegpt(turns: object) -> list[Turn]:
    """Turns of `{from, value}` messages. Raises `Unfit`."""
    if not isinstance(turns, list):
        raise Unfit("conversations are no list")
    return [_sharegpt_turn(turn) for turn in turns]


def _sharegpt_turn(turn: object) -> Turn:
    if not isinstance(turn, Mapping):
        raise Unfit("a turn of the conversation is no object")
    role = _role(turn.get("from"))
    return Turn(role, "" if role == "tool" else lookup.text(turn.get("value"), "value"), _learnt(turn))


def _openai_turn(message: object) -> Turn:
    if not isinstance(message, Mapping):
        raise Unfit("a message is no object")
    role = _role(message.get("role"))
    if role == "tool" or message.get("tool_calls") or message.get("function_call"):
        return Turn("tool", "")
    text = _content(message.get("content"))
    thought = lookup.first(message, lookup.REASONING)
    return Turn(role, lookup.with_reasoning(thought, text), _learnt(message))


def _role(name: object) -> str:
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Unfit("a turn of an unknown role")
    return role


def _learnt(turn: Mapping) -> bool:
    return turn.get("loss_weight", turn.get("weight")) != 0


def _content(content: object) -> str:
    """The text of a message: a string, or typed parts, of which reasoning goes between <think> tags."""
    if not isinstance(content, list):
        return lookup.text(content, "content")
    parts = [_part(part) for part in content]
    thought = "".join(text for kind, text in parts if kind == "reasoning")
    return lookup.with_reasoning(thought, "".join(text for kind, text in parts if kind == "text"))


def _part(part: Any) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise Unfit("a content part without a type")
    if any(word in kind for word in ("image", "audio", "video", "file")):
        raise Unfit(NO_TEXT)
    if "tool" in kind or "function" in kind:
        raise Unfit(TOOLS)
    if kind in ("reasoning", "thinking"):
        return "reasoning", lookup.text(_first_text(part, ("value", "text", "thinking", "reasoning")), kind)
    if "text" in kind:
        return "text", lookup.text(_first_text(part, ("text", "value")), kind)
    raise Unfit("a content part of an unknown type")


def _first_text(part: Mapping, names: Sequence[str]) -> object:
    return next((part[name] for name in names if part.get(name) is not None), None)
