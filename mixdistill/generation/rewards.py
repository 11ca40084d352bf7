"""Rewards of completions: step similarity, length, format, and their weighted sum. Numbers in, numbers out."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mixdistill.errors import UserError, unknown

MALFORMED = -1.0
LEVELS: dict[str, Callable[[str], Sequence]] = {"word": str.split, "char": list, "token": re.compile(r"\w+|\S").findall}


def step_similarity(
    model_step: str | None,
    expert_step: str,
    *,
    level: Literal["word", "char", "token"] = "word",
    autojunk: bool = False,
) -> float:
    """How much of an expert's step the student's step reproduces: 2 M / T (SRL, arXiv:2510.25992).

    M is the total size of the matching blocks of difflib's SequenceMatcher and T the size of both together, so the
    result lies in [0, 1]; -1 for a step that is malformed (None) or empty. `level` says what is matched: words,
    characters, or words and single marks ("token"). SequenceMatcher is not symmetric: the student's step comes first.
    With `autojunk` it drops elements that are frequent in steps of 200 or more, which makes long steps incomparable;
    the published reward does not say which it used.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if model_step is None or not model_step.strip():
        return MALFORMED
    model, expert = LEVELS[level](model_step), LEVELS[level](expert_step)
    return difflib.SequenceMatcher(None, model, expert, autojunk=autojunk).ratio()


def soft_overlong(length: int, *, limit: int, cache: int) -> float:
    """DAPO's penalty of long completions (arXiv:2503.14476): 0 up to `limit - cache` tokens, falling evenly to -1 at
    `limit`, and -1 beyond."""
    if not 0 < cache <= limit:
        raise UserError(f"cache is {cache} of limit {limit} tokens; it lies above 0 and at most at the limit")
    return -float(np.clip((length - (limit - cache)) / cache, 0.0, 1.0))


def after_thinking(text: str, *, tags: tuple[str, str] = ("<think>", "</think>")) -> str | None:
    """What is said after thinking that is opened and closed once, in that order; None where that is not the form, or
    nothing is said."""
    opening, closing = tags
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    before, after = text.split(closing)
    return after if opening in before and after.strip() else None


def well_formed(text: str, *, tags: tuple[str, str] = ("<think>", "</think>")) -> bool:
    """Whether thinking is opened and closed once, in that order, and something is said after it."""
    return after_thinking(text, tags=tags) is not None


def rescaled(reward: Callable[..., float], low: float, high: float) -> Callable[..., float]:
    """`reward`, mapped linearly so that `low` becomes 0 and `high` becomes 1; nothing is clipped."""
    if not low < high:
        raise UserError(f"low is {low} and high is {high}; low must be the smaller")
    return lambda *args, **kwargs: (reward(*args, **kwargs) - low) / (high - low)


class Rewards(NamedTuple):
    """Rewards of a batch of completions: the total that is optimised, and what it is made of."""

    total: np.ndarray  # float32 [n]; NaN where a part could not be told
    parts: dict[str, np.ndarray]  # float32 [n] each


def weighted_sum(parts: Mapping[str, Sequence[float] | np.ndarray], weights: Mapping[str, float]) -> Rewards:
    """Sum of `weights[name] * parts[name]`. A part that is NaN ("unverified") makes the completion's total NaN: it is
    left out of the update, neither punished nor rewarded. Raises `UserError` for names that do not match."""
    for name in weights:
        if name not in parts:
            raise unknown("reward", name, parts)
    arrays = {name: np.asarray(values, np.float32) for name, values in parts.items()}
    total = sum(np.float32(weight) * arrays[name] for name, weight in weights.items())
    return Rewards(np.asarray(total, np.float32), arrays)
