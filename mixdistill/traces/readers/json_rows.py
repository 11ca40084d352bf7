"""JSON files -> raw rows: JSON lines, one JSON array, or one JSON object, in bounded memory."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mixdistill.traces.readers.row import BadRow, Damaged, Raw, excerpt
from mixdistill.traces.readers.stream import CHUNK_BYTES, open_stream

MAX_ROW_BYTES = 2**24  # the longest traces in use have some 2**18 characters; a row may hold several
MAX_OBJECT_BYTES = 2**28  # of a file that is one object
TOO_LONG = f"row longer than {MAX_ROW_BYTES // 2**20} MiB"
REST = "; the rest of the file is not read"
SPACE = re.compile(r"[ \t\r\n\ufeff]*")


def read_json(path: Path) -> Iterator[Raw | BadRow]:
    """The rows of `path`; which of the three kinds it is shows in its first bytes."""
    with open_stream(path) as stream:
        try:
            head = stream.peek(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
        except Damaged as damage:
            yield BadRow(str(path), 1, f"{damage}{REST}")
            return
        if head.startswith(b"["):
            yield from _array(stream, str(path))
        elif _is_one_object(head):
            yield from _object(stream, str(path))
        else:
            yield from _lines(stream, str(path))


def _is_one_object(head: bytes) -> bool:
    """Whether neither of the first two lines is JSON by itself: then an object is spread over lines."""
    lines = [line for line in head.splitlines() if line.strip()][:2]
    if not head.startswith(b"{") or len(lines) < 2:
        return False
    return not any(isinstance(_parse(line), dict) for line in lines)


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _lines(stream: io.BufferedReader, file: str) -> Iterator[Raw | BadRow]:
    number = 0
    try:
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                yield BadRow(file, number, TOO_LONG, excerpt(line[:200].decode("utf-8", "replace")))
                _skip_line(stream, line)
            elif line.strip():
                yield _line(line, file, number)
    except Damaged as damage:
        yield BadRow(file, number + 1, f"{damage}{REST}")


def _line(line: bytes, file: str, number: int) -> Raw | BadRow:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return BadRow(file, number, "invalid UTF-8", excerpt(line.decode("utf-8", "backslashreplace"), error.start))
    try:
        return Raw(number, json.loads(text))
    except json.JSONDecodeError as error:
        return BadRow(file, number, f"malformed JSON: {error.msg}", excerpt(text, error.pos))
    except (ValueError, RecursionError) as error:
        return BadRow(file, number, _other_fault(error), excerpt(text))


def _skip_line(stream: io.BufferedReader, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_ROW_BYTES)


def _other_fault(error: Exception) -> str:
    return "JSON nested too deep" if isinstance(error, RecursionError) else "JSON with a number of too many digits"


def _array(stream: io.BufferedReader, file: str) -> Iterator[Raw | BadRow]:
    text = _Text(stream)
    line = 1
    try:
        text.skip("[")
        while not text.ends_with("]"):
            line = text.line
            try:
                value = text.value()
            except UnicodeEncodeError:
                yield BadRow(file, line, "invalid UTF-8", text.last)
            else:
                yield Raw(line, value)
            text.skip(",", unless="]")
        text.skip("]")
        text.finish()
    except Damaged as damage:
        yield BadRow(file, line, f"{damage}{REST}", text.last)


class _Text:
    """The characters of a stream around a place that moves forward, a value at a time."""

    def __init__(self, stream: io.BufferedReader):
        self._stream = stream
        # Bad bytes pass as surrogates, so that one of them costs one row and not the file.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._place, self._at_end = "", 0, False
        self.line, self.last = 1, ""

    def ends_with(self, mark: str) -> bool:
        self._skip_space()
        return self._text.startswith(mark, self._place)

    def skip(self, mark: str, unless: str = "") -> None:
        """Moves over `mark`; stays before `unless`. Raises `Damaged` for anything else."""
        self._skip_space()
        if self._text.startswith(mark, self._place):
            self._place += len(mark)
        elif not (unless and self._text.startswith(unless, self._place)):
            self.last = excerpt(self._text, self._place)
            raise Damaged("the JSON array is cut short" if self._done() else f"malformed JSON: Expecting {mark!r}")

    def finish(self) -> None:
        """Raises `Damaged` unless this is the end."""
        self._skip_space()
        if not self._done():
            self.last = excerpt(self._text, self._place)
            raise Damaged("text after the JSON array")

    def value(self) -> object:
        """The value here; moves over it. Raises `UnicodeEncodeError` when it holds bytes that are no UTF-8."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                self.last = excerpt(self._text, error.pos)
                if self._at_end:
                    cut = error.pos >= len(self._text.rstrip()) or error.msg.startswith("Unterminated")
                    raise Damaged("the JSON array is cut short" if cut else f"malformed JSON: {error.msg}") from None
                if error.pos < len(self._text) - 16 and not error.msg.startswith("Unterminated"):
                    raise Damaged(f"malformed JSON: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                raise Damaged(_other_fault(error)) from None
            else:
                if end < len(self._text) or self._at_end:
                    return self._take(value, end)
            if len(self._text) - self._place > MAX_ROW_BYTES:
                raise Damaged(TOO_LONG)
            self._more(max(CHUNK_BYTES, len(self._text) - self._place))

    def _take(self, value: object, end: int) -> object:
        taken, self._place = self._text[self._place : end], end
        self.line += taken.count("\n")
        if not taken.isascii():
            self.last = excerpt(taken)
            taken.encode()
        return value

    def _skip_space(self) -> None:
        while True:
            match = SPACE.match(self._text, self._place)
            assert match
            self.line += match.group().count("\n")
            self._place = match.end()
            if self._place < len(self._text) or self._at_end:
                return
            self._more(CHUNK_BYTES)

    def _done(self) -> bool:
        return self._at_end and self._place == len(self._text)

    def _more(self, size: int) -> None:
        chunk = self._stream.read(size)
        self._at_end = not chunk
        self._text = self._text[self._place :] + self._decoder.decode(chunk, final=self._at_end)
        self._place = 0


def _object(stream: io.BufferedReader, file: str) -> Iterator[Raw | BadRow]:
    """The objects in the only list of objects that the object holds, else the object itself."""
    try:
        data = stream.read(MAX_OBJECT_BYTES + 1)
    except Damaged as damage:
        yield BadRow(file, 0, str(damage))
        return
    if len(data) > MAX_OBJECT_BYTES:
        yield BadRow(file, 0, f"JSON object longer than {MAX_OBJECT_BYTES // 2**20} MiB; make it JSON lines")
        return
    whole = _line(data, file, 1)
    if isinstance(whole, BadRow):
        yield whole._replace(line=0)
        return
    lists = [v for v in whole.value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    one = len(lists) == 1 and "messages" not in whole.value and "conversations" not in whole.value
    yield from (Raw(number, row) for number, row in enumerate(lists[0] if one else [whole.value], start=1))
