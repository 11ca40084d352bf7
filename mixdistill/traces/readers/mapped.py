"""Rows of any layout, read by a mapping field -> dotted path; and formats amended by such a mapping."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mixdistill.errors import UserError, unknown
from mixdistill.traces.readers import lookup
from mixdistill.traces.readers.row import Draft, Unfit

META = ("split", "fold", "sample")
FIELDS = ("prompt", "completion", "teacher", "problem_id", "reference", "answer", "correct", "logprobs", *META)


def check(mapping: Mapping[str, str]) -> dict[str, str]:
    """The mapping. Raises `UserError` for a field that no trace has."""
    for field in mapping:
        if field not in FIELDS:
            raise unknown("field", field, FIELDS)
    return dict(mapping)


def is_complete(mapping: Mapping[str, str]) -> bool:
    """Whether the mapping is a format by itself. Raises `UserError` when it gives a completion without its prompt."""
    if "completion" in mapping and "prompt" not in mapping:
        raise UserError("--map completion=... needs --map prompt=... beside it")
    return "completion" in mapping


def reader(mapping: Mapping[str, str]) -> Callable[[Mapping], Iterator[Draft | Unfit]]:
    """Drafts by the mapping alone. A list of completions is one trace each."""

    def drafts(row: Mapping) -> Iterator[Draft | Unfit]:
        found = lookup.at_path(row, mapping["completion"])
        prompt = lookup.text(lookup.at_path(row, mapping["prompt"]), mapping["prompt"])
        several = isinstance(found, list)
        if several and not found:
            raise Unfit(lookup.NO_COMPLETION)
        for sample, completion in enumerate(found if several else [found]):
            draft = Draft(prompt, lookup.text(completion, mapping["completion"]), teacher=lookup.teacher(row))
            if several:
                draft.meta["sample"] = sample
            yield _amended(draft, row, {k: v for k, v in mapping.items() if k not in ("prompt", "completion")})

    return drafts


def amend(
    drafts: Callable[[Mapping], Iterable[Draft | Unfit]], mapping: Mapping[str, str]
) -> Callable[[Mapping], Iterable[Draft | Unfit]]:
    """`drafts` with the fields of `mapping` in place of what the format finds."""
    if not mapping:
        return drafts
    return lambda row: (d if isinstance(d, Unfit) else _amended(d, row, mapping) for d in drafts(row))


def _amended(draft: Draft, row: Mapping, mapping: Mapping[str, str]) -> Draft:
    for field, path in mapping.items():
        value = lookup.at_path(row, path)
        if field in META:
            draft.meta[field] = value
        else:
            setattr(draft, field, _converted(field, value, path))
    return draft


def _converted(field: str, value: Any, path: str) -> Any:
    if field == "logprobs":
        return value
    if field in ("prompt", "completion"):
        return lookup.text(value, path)
    if field != "correct":
        if isinstance(value, dict | list):
            raise Unfit(f"field {path!r} is {type(value).__name__}, not text")
        return lookup.scalar(value)
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise Unfit(f"field {path!r} is no truth value")
