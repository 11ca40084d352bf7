"""Broken inputs out of good ones, by a seeded generator: bytes that are changed, JSON whose values are."""

import json
import random
from collections.abc import Sequence
from typing import Any

# What stands where nobody expects it.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 0.5, 10**400, float("nan"), float("inf"), -1e308, "", "x", "1", "\ud800", "\x00",
    "#### 2", "['", '["a"]', "[" * 3000, "user", "assistant", "text", "../x", "/etc/passwd", [], [[]], [None],
    ["a", 1], {}, {"": None}, {"role": "user", "content": "q"}, {"a": {"a": []}}, [0.5, -0.5], "2" * 4000,
)  # fmt: skip


def mutate(rng: random.Random, corpus: Sequence[bytes], pieces: Sequence[bytes]) -> bytes:
    """One input: an example with something changed, rarely the grammar's pieces in any order, or noise."""
    roll = rng.random()
    if roll < 0.03:
        return rng.randbytes(rng.randrange(64))
    if roll < 0.15 and pieces:
        return b"".join(rng.choices(pieces, k=rng.randrange(1, 13)))
    data = rng.choice(corpus)
    if roll < 0.6 and (changed := _reshaped(rng, data, corpus)) is not None:
        return changed
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        data = _edited(rng, data, corpus, pieces)
    return data


def _edited(rng: random.Random, data: bytes, corpus: Sequence[bytes], pieces: Sequence[bytes]) -> bytes:
    place, size = rng.randrange(len(data) + 1), rng.choice((0, 0, 1, 1, 2, 4, 8, 16))
    match rng.randrange(6):
        case 0 if data:  # a bit
            changed = bytearray(data)
            changed[place % len(data)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 1:  # cut
            return data[:place] if rng.random() < 0.5 else data[place:]
        case 2:  # doubled
            return data[: place + size] + data[place:]
        case 3:  # the rest of another
            other = rng.choice(corpus)
            return data[:place] + other[rng.randrange(len(other) + 1) :]
        case _:  # put in, or instead
            return data[:place] + (rng.choice(pieces) if pieces else rng.randbytes(4)) + data[place + size :]


def _reshaped(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes | None:
    """Another JSON value of a similar shape; None for what is no JSON."""
    try:
        value, other = json.loads(data), json.loads(rng.choice(corpus))
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = _changed(rng, value, other)
        return json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def _changed(rng: random.Random, value: Any, other: Any) -> Any:
    if rng.random() < 0.1 or not value or not isinstance(value, dict | list):
        return rng.choice(ODD) if rng.random() < 0.8 else other
    if isinstance(value, list):
        place = rng.randrange(len(value))
        inner = rng.choice(([], [value[place]] * 2, [_changed(rng, value[place], other)]))
        return [*value[:place], *inner, *value[place + 1 :]]
    name = rng.choice(list(value))
    rest = {key: one for key, one in value.items() if key != name}
    match rng.randrange(6):
        case 0:
            return rest
        case 1 if isinstance(other, dict) and other:  # a field of another example
            name = rng.choice(list(other))
            return value | {name: other[name]}
        case 2:
            return rest | {rng.choice(("", "a", "content", "answer", "text")): value[name]}
        case _:
            return value | {name: _changed(rng, value[name], other)}
