"""Text -> reasoning steps. A rule is a pure function that finds where steps begin; the steps, joined, are the text.

White space between two steps ends the first of them. A piece without a letter or digit is no step: it joins the one
before it (at the very start, the one after it).
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable

from mixdistill.errors import unknown
from mixdistill.traces.trace import Step, Trace

BLANK_LINE = re.compile(r"\n[ \t\r]*\n\s*")
LINE = re.compile(r"\n\s*")
NUMBER = re.compile(r"^[ \t#*_>-]*(?:(?:step|part|case)[ \t]+\d+\b|\(?\d{1,2}[.):](?=\s|\*))", re.I | re.M)
# Literal tags, and the two lines between which some reasoners think without tags.
NAMES = "think|thinking|reasoning|step|answer|solution"
TAG = re.compile(rf"(?P<open><(?:{NAMES})>)|</(?:{NAMES})>\s*|^(?:think|answer)[ \t]*\n", re.M)
SENTENCE = re.compile(r"""(?<=[.!?])["')\]*_]*\s+(?=["'(\[*_$\\]*[A-Z0-9])|\n\s*""")
JSON_SENTENCE = re.compile(SENTENCE.pattern + r"|(?<!\\)(?:\\n)+")
JSON_HEAD = re.compile(r"\s*(?:```(?:json)?\s*)?\{\s*\"")
# A full stop after these ends no sentence: an abbreviation, an initial, or the number of a list item.
ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|No|vs|e\.g|i\.e|etc|approx|resp|cf|Eq|Fig)|\b[A-Z]|^\s*\d{1,2}|\n\s*\d{1,2}|\\n\d{1,2})\.$"
)
WORD = re.compile(r"[^\W_]")


def segment(text: str, rule: str = "auto") -> tuple[Step, ...]:
    """The steps of `text` by a rule in `RULES`; their texts join to it. No step for "". Raises `UserError`."""
    if rule not in RULES:
        raise unknown("segmentation rule", rule, RULES)
    return RULES[rule](text)


def segment_trace(trace: Trace, rule: str = "auto") -> Trace:
    """The trace with its one step divided; one that has several steps keeps them.

    Recorded log-probabilities go with the step that holds their token's first visible character. Where the tokens'
    texts are not recorded, that cannot be known, and the trace stays one step."""
    if len(trace.steps) != 1:
        return trace
    (whole,) = trace.steps
    tokens = trace.meta.get("logprob_tokens", ())
    meta = {key: value for key, value in trace.meta.items() if key != "logprob_tokens"}
    if whole.token_logprobs and not tokens:
        return dataclasses.replace(trace, meta=meta)
    steps = segment(whole.text, rule)
    if tokens:
        steps = _with_logprobs(steps, tokens, whole.token_logprobs)
    return dataclasses.replace(trace, steps=steps, meta=meta)


def auto(text: str) -> tuple[Step, ...]:
    """Tags first; within a section the coarsest mark that its author used: numbers, blank lines, lines, sentences."""
    starts: list[int] = []
    for start, stop in itertools.pairwise([0, *_tag_starts(text), len(text)]):
        section = text[start:stop]
        starts += [start, *(start + place for place in _section_starts(section))]
    return _steps(text, starts)


def blank_line(text: str) -> tuple[Step, ...]:
    """A step ends at a blank line."""
    return _steps(text, _ends(BLANK_LINE, text))


def line(text: str) -> tuple[Step, ...]:
    """A step is a line."""
    return _steps(text, _ends(LINE, text))


def numbered(text: str) -> tuple[Step, ...]:
    """A step begins at a line with a number: "1.", "2)", "Step 3:", with or without marks of a heading."""
    return _steps(text, _number_starts(text))


def tags(text: str) -> tuple[Step, ...]:
    """A step begins before an opening tag (<think>, <step>, ...), after a closing one, and at an "answer" line."""
    return _steps(text, _tag_starts(text))


def sentence(text: str) -> tuple[Step, ...]:
    """A step is a sentence or a line; inside a JSON string an escaped line break counts as one."""
    return _steps(text, _sentence_starts(text))


RULES: dict[str, Callable[[str], tuple[Step, ...]]] = {
    rule.__name__: rule for rule in (auto, blank_line, line, numbered, tags, sentence)
}


def _section_starts(text: str) -> list[int]:
    numbers = _number_starts(text)
    if len(numbers) >= 2:
        return numbers
    for pattern in (BLANK_LINE, LINE):
        # A JSON object is laid out in lines by its syntax, not by its author.
        if not JSON_HEAD.match(text) and pattern.search(text.strip()):
            return _ends(pattern, text)
    return _sentence_starts(text)


def _ends(pattern: re.Pattern, text: str) -> list[int]:
    return [match.end() for match in pattern.finditer(text)]


def _number_starts(text: str) -> list[int]:
    return [match.start() for match in NUMBER.finditer(text)]


def _tag_starts(text: str) -> list[int]:
    return [
        match.start() if match["open"] or not match.group().startswith("<") else match.end()
        for match in TAG.finditer(text)
    ]


def _sentence_starts(text: str) -> list[int]:
    head = JSON_HEAD.match(text)
    matches = (JSON_SENTENCE if head else SENTENCE).finditer(text, head.end() if head else 0)
    return [m.end() for m in matches if not ABBREVIATION.search(text, max(0, m.start() - 12), m.start())]


def _steps(text: str, starts: Iterable[int]) -> tuple[Step, ...]:
    """The pieces between `starts`, those without a word joined to their neighbour."""
    pieces: list[str] = []
    for start, stop in itertools.pairwise(sorted({0, *starts, len(text)})):
        piece = text[start:stop]
        if pieces and not (WORD.search(piece) and WORD.search(pieces[-1])):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(Step(piece) for piece in pieces)


def _with_logprobs(steps: tuple[Step, ...], tokens: list[str], logprobs: tuple[float, ...]) -> tuple[Step, ...]:
    ends = list(itertools.accumulate(len(step.text) for step in steps))
    parts: list[list[float]] = [[] for _ in steps]
    place = 0
    for token, logprob in zip(tokens, logprobs, strict=True):
        first = place + (len(token) - len(token.lstrip()) if token.strip() else 0)
        parts[min(bisect.bisect_right(ends, first), len(steps) - 1)].append(logprob)
        place += len(token)
    return tuple(Step(step.text, tuple(part)) for step, part in zip(steps, parts, strict=True))
