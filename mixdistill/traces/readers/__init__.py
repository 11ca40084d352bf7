"""Readers: any trace file -> Traces and bad rows. `read` is the whole interface.

Two layers. A file's *container* (JSON lines, array, Parquet, Arrow, a TFDS folder; `containers.py`) gives raw rows. A
row's *format* (one module each, in `FORMATS`) gives drafts of traces; `finish.py` makes them traces. Every row comes
out as a trace or as a `BadRow` with the reason; nothing is dropped and nothing in a row can raise.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mixdistill.errors import UserError, unknown
from mixdistill.traces.readers import (
    alpaca,
    evaluation,
    mapped,
    math_harness,
    messages,
    normalised,
    own,
    preference,
    prompt_completion,
    question_answer,
    reasoning,
    sharegpt,
    verl,
    wide,
)
from mixdistill.traces.readers.containers import read_rows
from mixdistill.traces.readers.finish import finish, teacher_from_name
from mixdistill.traces.readers.row import BadRow, Draft, Raw, Unfit, excerpt, keys
from mixdistill.traces.trace import Trace

__all__ = ["FORMATS", "BadRow", "Format", "detect", "read"]

SAMPLE_ROWS = 16  # a file's format is what most of its first rows are


class Format(NamedTuple):
    """How the rows of one kind are told and read."""

    matches: Callable[[Mapping], bool]
    drafts: Callable[[Mapping], Iterator[Draft | Unfit]]


# The order decides where several match: the more particular comes first.
FORMATS: dict[str, Format] = {
    "mixdistill": Format(own.matches, own.drafts),
    "normalised": Format(normalised.matches, normalised.drafts),
    "preference": Format(preference.matches, preference.drafts),
    "sharegpt": Format(sharegpt.matches, sharegpt.drafts),
    "messages": Format(messages.matches, messages.drafts),
    "verl": Format(verl.matches, verl.drafts),
    "math-harness": Format(math_harness.matches, math_harness.drafts),
    "evaluation": Format(evaluation.matches, evaluation.drafts),
    "wide": Format(wide.matches, wide.drafts),
    "reasoning": Format(reasoning.matches, reasoning.drafts),
    "alpaca": Format(alpaca.matches, alpaca.drafts),
    "prompt-completion": Format(prompt_completion.matches, prompt_completion.drafts),
    "question-answer": Format(question_answer.matches, question_answer.drafts),
}


def read(
    path: Path | str,
    *,
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    teacher: str | None = None,
    teacher_field: str | None = None,
) -> Iterator[Trace | BadRow]:
    """The traces and bad rows of `path`, in the file's order. Traces are one step each (`segment` divides them) and
    ungraded; `meta` holds the source's file, line and, if it gives one, its own verdict ("label").

    `mapping` says where fields lie (see `mapped.FIELDS`): with prompt and completion it is a format of its own, else it
    amends what the format finds. The teacher is what `teacher_field` or the row names, else `teacher`, else the file's
    name. Raises `UserError` for a path, format or field that does not exist, or a format that cannot be told.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    overrides = mapped.check(dict(mapping or {}) | ({"teacher": teacher_field} if teacher_field else {}))
    rows = read_rows(path)
    if format is None and mapped.is_complete(overrides):
        drafts = mapped.reader(overrides)
    else:
        head = list(itertools.islice(rows, SAMPLE_ROWS))
        rows = itertools.chain(head, rows)
        drafts = mapped.amend(_format(path, format, head).drafts, overrides)
    return _read(rows, drafts, path, teacher or teacher_from_name(path))


def detect(path: Path | str) -> str:
    """The name in `FORMATS` of the first rows of `path`. Raises `UserError` when none fits."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    return _detect(path, list(itertools.islice(read_rows(path), SAMPLE_ROWS)))


def _format(path: Path, name: str | None, head: list[Raw | BadRow]) -> Format:
    if name is not None and name not in FORMATS:
        raise unknown("format", name, FORMATS)
    if name is None and not any(isinstance(row, Raw) for row in head):
        return FORMATS["normalised"]  # nothing but bad rows: any format passes them on
    return FORMATS[name or _detect(path, head)]


def _detect(path: Path, head: list[Raw | BadRow]) -> str:
    rows = [row.value for row in head if isinstance(row, Raw) and isinstance(row.value, Mapping)]
    votes = Counter(name for row in rows if (name := _format_of(row)))
    if votes:
        return max(votes, key=lambda name: votes[name])
    has = f"its rows have: {keys(rows[0])}" if rows else "no row of it could be read"
    raise UserError(
        f"cannot tell the format of {path}; {has}. Give --map prompt=FIELD --map completion=FIELD, or --format with "
        f"one of: {', '.join(FORMATS)}"
    )


def _format_of(row: Mapping) -> str | None:
    return next((name for name, format in FORMATS.items() if format.matches(row)), None)


def _read(
    rows: Iterable[Raw | BadRow], drafts: Callable[[Mapping], Iterable[Draft | Unfit]], path: Path, teacher: str
) -> Iterator[Trace | BadRow]:
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            if not isinstance(row.value, Mapping):
                raise Unfit(f"the row is {type(row.value).__name__}, not an object")
            for draft in drafts(row.value):
                yield _finish(draft, path, row, teacher)
        except Unfit as unfit:
            yield _bad(path, row, unfit)
        except RecursionError:
            yield _bad(path, row, Unfit("nested too deep"))


def _finish(draft: Draft | Unfit, path: Path, row: Raw, teacher: str) -> Trace | BadRow:
    try:
        if isinstance(draft, Unfit):
            raise draft
        # A dataset folder is named by its parent too: its own name is a version or a split.
        source = "/".join(path.parts[-2:]) if path.is_dir() else path.name
        return finish(draft, source=source, line=row.line, teacher=teacher)
    except Unfit as unfit:
        return _bad(path, row, unfit)


def _bad(path: Path, row: Raw, unfit: Unfit) -> BadRow:
    return BadRow(str(path), row.line, str(unfit), excerpt(row.value))
