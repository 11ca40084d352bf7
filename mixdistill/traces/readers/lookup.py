"""Finding values in a row: by one of several usual names, or by a dotted path."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixdistill.traces.readers.row import Unfit, keys

PROMPT = ("question", "problem", "prompt", "query", "instruction")
TEACHER = ("teacher", "generator", "model", "model_name")
MISSING = object()


def first(row: Mapping, names: Sequence[str]) -> Any:
    """The first value among `names` that is there and not empty; None if none is."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [], {})), None)


def text(value: object, name: str) -> str:
    """`value` if it is text. Raises `Unfit` naming field `name` otherwise."""
    if isinstance(value, str):
        return value
    kind = "null" if value is None else type(value).__name__
    raise Unfit(f"field {name!r} is {kind}, not text")


def scalar(value: object) -> str:
    """A short value as text: "" for None; numbers as they print."""
    return "" if value is None else str(value)


def prompt(row: Mapping) -> str:
    """The problem under one of its usual names."""
    name = next((name for name in PROMPT if row.get(name)), None)
    if name is None:
        raise Unfit(f"no problem in the row: none of {', '.join(PROMPT)}")
    return text(row[name], name)


def teacher(row: Mapping) -> str:
    """The teacher or model that the row names, without its organisation; "" if none."""
    name = first(row, TEACHER)
    return name.rsplit("/", 1)[-1] if isinstance(name, str) else ""


def at_path(row: Any, path: str) -> Any:
    """The value at a dotted path ("outputs.0.text"); a key that holds dots itself wins. Raises `Unfit`."""
    value = _walk(row, path)
    if value is MISSING:
        has = keys(row) if isinstance(row, Mapping) else type(row).__name__
        raise Unfit(f"no field {path!r}; the row has: {has}")
    return value


def _walk(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        head, _, rest = path.partition(".")
        while rest:
            if head in value and (found := _walk(value[head], rest)) is not MISSING:
                return found
            more, _, rest = rest.partition(".")
            head = f"{head}.{more}"
    elif isinstance(value, list):
        head, _, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(value):
            return _walk(value[int(head)], rest) if rest else value[int(head)]
    return MISSING
