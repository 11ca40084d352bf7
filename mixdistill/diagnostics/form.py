"""The form of a trace: epistemic markers, answer format, think tags, truncation, runaway loops. Text alone, no student.

Traces teach form, and forms differ between teachers far more than content does. These counts say how a teacher writes;
they do not say whether it hurts (a hedging style costs nothing but dilution): see `conflict` and `undecidable`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.traces.trace import Trace

# arXiv:2603.24472's list, whose released code counts them as substrings, whatever the case ("unlikely" has "likely").
MARKERS: tuple[str, ...] = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)
_WHOLE_WORDS = re.compile(rf"\b({'|'.join(MARKERS)})\b")

# How the final answer is announced. The last announcement in the text counts.
ANSWER_FORMATS = {
    "boxed": re.compile(r"\\boxed\s*\{"),
    "####": re.compile(r"^\s*####", re.M),
    "tag": re.compile(r"<answer>", re.I),
    "json": re.compile(r'"(?:final_?)?answer"\s*:', re.I),
    "label": re.compile(r"^\W*(?:final )?(?:answer|A)\W{0,3}:", re.I | re.M),
    "phrase": re.compile(r"\banswer\b\W{0,4}(?:is|would be|=)", re.I),
}
_OPEN, _CLOSE = re.compile(r"<(?:think|thinking)>"), re.compile(r"</(?:think|thinking)>")
_UNFINISHED = re.compile(r"(?:[^\W\d]|[,(+\-=/])\s*\Z")  # a word or an open operation, no mark that ends a sentence

# A loop: at the end the same block, of up to LOOP_PERIOD tokens, three times or more, LOOP_TOKENS or more in all.
LOOP_PERIOD, LOOP_TOKENS, LOOP_REPEATS, LOOP_RAGGED = 256, 48, 3, 2


def count_markers(text: str, boundaries: bool = False) -> dict[str, int]:
    """How often each of the ten epistemic markers stands in `text`, whatever its case (arXiv:2603.24472).

    As a substring, as the released code counts ("checked" has "check"); with `boundaries` as a whole word only.
    """
    text = text.lower()
    if not boundaries:
        return {marker: text.count(marker) for marker in MARKERS}
    counts = dict.fromkeys(MARKERS, 0)
    for marker in _WHOLE_WORDS.findall(text):
        counts[marker] += 1
    return counts


def answer_format(text: str) -> str:
    """The name in `ANSWER_FORMATS` of the last announcement of an answer, "none" without one."""
    last = {
        name: max((m.start() for m in pattern.finditer(text)), default=-1) for name, pattern in ANSWER_FORMATS.items()
    }
    name = max(last, key=lambda name: last[name])
    return name if last[name] >= 0 else "none"


def think_tags(text: str) -> str:
    """ "none", "closed" (as many closing as opening tags), `unclosed` (the thinking never ends), or `unopened`: the
    opening tag is missing, mostly because a chat template had written it before the completion began."""
    opened, closed = len(_OPEN.findall(text)), len(_CLOSE.findall(text))
    if not opened and not closed:
        return "none"
    return "closed" if opened == closed else "unclosed" if opened > closed else "unopened"


def is_truncated(text: str) -> bool:
    """Thinking that never ends; or no announced answer, and a text that stops in the middle of a sentence."""
    if think_tags(text) == "unclosed":
        return True
    return bool(_UNFINISHED.search(text[-20:])) and answer_format(text) == "none"


class Loop(NamedTuple):
    """The end of a trace that repeats itself: `tokens` tokens with a period of `period` tokens."""

    period: int
    tokens: int


def find_loop(tokens: Sequence[int] | np.ndarray) -> Loop | None:
    """The shortest-period loop that `tokens` (completion, without the end token) end in, None if they end in none.
    The last LOOP_RAGGED tokens may differ: a limit that cuts within a word leaves tokens that no other repeat has."""
    backwards = np.asarray(tokens)[::-1]
    for ragged in range(LOOP_RAGGED + 1):
        if found := _loop_from(backwards[ragged:]):
            return found
    return None


def _loop_from(backwards: np.ndarray) -> Loop | None:
    if len(backwards) < LOOP_TOKENS:
        return None
    # A period can only start where the last token comes again.
    again = backwards[1 : LOOP_PERIOD + 1] == backwards[0]
    for period in np.flatnonzero(again) + 1:
        differs = backwards[:-period] != backwards[period:]
        length = int(period + (np.argmax(differs) if differs.any() else len(differs)))
        if length >= max(LOOP_TOKENS, LOOP_REPEATS * period):
            return Loop(int(period), length)
    return None


class Form(NamedTuple):
    """One trace's form."""

    characters: int
    words: int
    steps: int
    markers: dict[str, int]  # as substrings
    marker_words: dict[str, int]  # as whole words
    answer_format: str
    think_tags: str
    truncated: bool
    loop: Loop | None


def form_of(trace: Trace, tokens: Sequence[int] | np.ndarray) -> Form:
    """`tokens`: the completion's, without the end token. A trace without text has zeros and "none"."""
    text = trace.text
    return Form(
        len(text),
        len(text.split()),
        len(trace.steps),
        count_markers(text),
        count_markers(text, boundaries=True),
        answer_format(text),
        think_tags(text),
        is_truncated(text),
        find_loop(tokens),
    )
