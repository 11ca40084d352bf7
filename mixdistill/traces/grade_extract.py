"""Text -> its final answer, by the marks that writers put there. The reference is never seen.

First the part that holds the answer: behind the thoughts of a reasoning model. In it an explicit mark (####, a box, a
JSON "answer", <answer>, a closing "A:" line) wins, the last one where there are several; then prose (`grade_prose`).
An answer is a piece of the text as it stands there, so that its tokens can be found.
"""

import json
import re
from collections.abc import Iterator

from mixdistill.traces.grade_prose import conclusion, phrase, stated

THOUGHT_ENDS = re.compile(r"</(?:think|thinking|thought|reasoning)>")
ANSWER_LINE = re.compile(r"^answer[ \t]*\n", re.M)  # after thoughts that began with a line "think"
HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.M)
LETTER_LINE = re.compile(r"^[ \t]*A:[ \t]*(\S.*)$", re.M)
ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.S)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?=\w)")
JSON_KEY = re.compile(r"""["'](?:final_)?answer["']\s*:\s*""", re.I)
JSON_STRING = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1""", re.S)
WORD = re.compile(r"\w+")
BARE = re.compile(r"[^,}\n]*")
CONTROL = re.compile(r"[\x08\x0c\t\r\n]")
MAX_ANSWER = 200  # characters; what is longer is no answer but prose

Mark = tuple[int, str]  # where it stands, and the answer


def extract(text: str) -> str:
    """The final answer, "" if there is none."""
    for part in _parts(text):
        if answer := extract_marked(part) or conclusion(part):
            return answer
    return ""


def extract_marked(text: str) -> str:
    """The final answer where the writer marks it, "" elsewhere."""
    marks = [mark for rule in (_hashes, _tag, _boxed, _json, _letter_line) if (mark := rule(text))]
    return stated(max(marks)[1]) if marks else phrase(text)


def _parts(text: str) -> Iterator[str]:
    """What follows the thoughts, then, if that says nothing, all."""
    ends = [match.end() for match in THOUGHT_ENDS.finditer(text)]
    if not ends and text.lstrip()[:6].strip() == "think":
        ends = [match.end() for match in ANSWER_LINE.finditer(text)]
    if ends and text[ends[-1] :].strip():
        yield text[ends[-1] :]
    yield text


def _hashes(text: str) -> Mark | None:
    return _closing(HASHES, text)  # elsewhere it is a heading in Markdown


def _letter_line(text: str) -> Mark | None:
    return _closing(LETTER_LINE, text)


def _closing(pattern: re.Pattern, text: str) -> Mark | None:
    """What `_last` finds, if it is the last line."""
    found = _last(pattern, text)
    return found if found and "\n" not in text[found[0] :].strip() else None


def _tag(text: str) -> Mark | None:
    found = _last(ANSWER_TAG, text)
    return found and (found[0], extract_marked(found[1]) or found[1])


def _last(pattern: re.Pattern, text: str) -> Mark | None:
    found = next(reversed(list(pattern.finditer(text))), None)
    return (found.start(), found[1].strip()) if found and 0 < len(found[1].strip()) <= MAX_ANSWER else None


def _boxed(text: str) -> Mark | None:
    for match in reversed(list(BOXED.finditer(text))):
        content = _braced(text, match.end()).strip()
        if content:
            return match.start(), content
    return None


def _braced(text: str, start: int) -> str:
    """The content of the braces at `start`, or the word there; "" if they do not close."""
    if text[start] != "{":
        return WORD.match(text, start).group()  # type: ignore[union-attr]
    depth = 0
    for place in range(start, min(len(text), start + MAX_ANSWER)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place]
    return ""


def _json(text: str) -> Mark | None:
    for match in reversed(list(JSON_KEY.finditer(text))):
        value = _json_value(text, match.end()).strip()
        if value.strip("_ ") and len(value) <= MAX_ANSWER:
            return match.start(), value
    return None


def _json_value(text: str, start: int) -> str:
    """The value at `start` as text, also where the JSON around it is cut or malformed."""
    quoted = JSON_STRING.match(text, start)
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        return quoted[2] if quoted else BARE.match(text, start).group()  # type: ignore[union-attr]
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    # A single backslash before a LaTeX command ("\frac", "\boxed") reads as a control character in JSON.
    return quoted[2] if quoted and CONTROL.search(value) else value
